"""What the stand-in for a Kubernetes API server answers besides RayJobs and Kueue: its version, API groups, and metadata of Secrets.

A Secret is given as `PartialObjectMetadata` alone: who asks for the whole object, whose values would then travel, is refused here, which
the original would not do. It cannot prove what RBAC of a real server lets an account see.
"""

from __future__ import annotations

METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


def answer(cluster, namespace, parts, accept, refused):
    """The answer to a GET of the path `parts`, or None if it is none of these. `refused(code, reason, message)` makes an error."""
    match parts:
        case ["version"]:
            major, minor = cluster.version
            return {"major": major, "minor": minor, "gitVersion": f"v{major}.{minor}.0"}
        case ["apis", group]:
            if group not in cluster.groups:
                raise refused(404, "NotFound", "the server could not find the requested resource")
            versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in cluster.groups[group]]
            return {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions, "preferredVersion": versions[0]}
        case ["api", "v1", "namespaces", asked, "secrets", name]:
            if accept != METADATA_ALONE:
                raise refused(406, "NotAcceptable", "this stand-in gives no values of Secrets")
            if asked != namespace or name not in cluster.secrets:
                raise refused(404, "NotFound", f'secrets "{name}" not found')
            return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": name}}
    return None

"""Rules for every pod: the restricted profile of Pod Security, and what this project asks beyond it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from components.platform.task_config import LAUNCHERS_OWN
from infra.policy.documents import Object, Pod, at
from infra.policy.rule import Fault, Rule
from infra.policy.secrets import secret_in_env, secret_in_words

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
DIGEST = re.compile(r"^[^@\s]+@sha256:[0-9a-f]{64}$")
ZEROS = "@sha256:" + 64 * "0"
RESOURCES = ("cpu", "memory")
RAY_KINDS = ("RayJob", "RayCluster", "RayService")


def _setting(pod: Pod, container: Object, name: str) -> object:
    """What holds for a container: its own word, else the pod's."""
    own = (container.get("securityContext") or {}).get(name)
    return own if own is not None else (pod.spec.get("securityContext") or {}).get(name)


def non_root(pod: Pod) -> Iterator[Fault]:
    """`runAsNonRoot: true` and a user by number."""
    for path, container in pod.containers():
        if _setting(pod, container, "runAsNonRoot") is not True:
            yield f"{path}.securityContext.runAsNonRoot", "is not true"
        user = _setting(pod, container, "runAsUser")
        if not isinstance(user, int) or user <= 0:
            yield f"{path}.securityContext.runAsUser", f"is {user}, not a number above 0"


def no_privilege(pod: Pod) -> Iterator[Fault]:
    """No way up: escalation, privileged mode, capabilities, an unmasked /proc."""
    for path, container in pod.containers():
        context = container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{path}.securityContext.allowPrivilegeEscalation", "is not false"
        if context.get("privileged"):
            yield f"{path}.securityContext.privileged", "is true"
        if "ALL" not in (at(context, "capabilities.drop") or []):
            yield f"{path}.securityContext.capabilities.drop", "does not hold ALL"
        if at(context, "capabilities.add"):
            yield f"{path}.securityContext.capabilities.add", "gives capabilities back"
        if context.get("procMount", "Default") != "Default":
            yield f"{path}.securityContext.procMount", "is not Default"


def seccomp(pod: Pod) -> Iterator[Fault]:
    """System calls are filtered."""
    for path, container in pod.containers():
        profile = _setting(pod, container, "seccompProfile")
        kind = profile.get("type") if isinstance(profile, dict) else None
        if kind not in ("RuntimeDefault", "Localhost"):
            yield f"{path}.securityContext.seccompProfile.type", f"is {kind}"


def no_host(pod: Pod) -> Iterator[Fault]:
    """Nothing of the node: its namespaces, ports, folders, kernel settings."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield f"{pod.path}.spec.{name}", "is true"
    if (pod.spec.get("securityContext") or {}).get("sysctls"):
        yield f"{pod.path}.spec.securityContext.sysctls", "is set"
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        other = sorted(set(volume) - {"name"} - VOLUMES)
        if other:
            yield f"{pod.path}.spec.volumes[{number}]", f"is of kind {other[0]}"
    for path, container in pod.containers():
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield f"{path}.ports", "opens a port of the node"


def read_only_root(pod: Pod) -> Iterator[Fault]:
    """What the image holds cannot be changed; scratch space is bounded."""
    for path, container in pod.containers():
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            yield f"{path}.securityContext.readOnlyRootFilesystem", "is not true"
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"{pod.path}.spec.volumes[{number}].emptyDir.sizeLimit", "is missing"


def limits(pod: Pod) -> Iterator[Fault]:
    """Requests and limits for both; equal in Ray pods. Disk is bounded by the size of each scratch volume, see `read_only_root`."""
    for path, container in pod.containers():
        for name in RESOURCES:
            asked, most = (at(container, f"resources.{kind}") or {} for kind in ("requests", "limits"))
            for kind, told in (("requests", asked), ("limits", most)):
                if name not in told:
                    yield f"{path}.resources.{kind}.{name}", "is missing"
            if pod.owner.get("kind") in RAY_KINDS and str(asked.get(name)) != str(most.get(name)):
                yield f"{path}.resources", f"{name}: requests {asked.get(name)}, limits {most.get(name)}"


def by_digest(pod: Pod) -> Iterator[Fault]:
    """An image is named by what is in it."""
    for path, container in pod.containers():
        if not DIGEST.match(str(container.get("image", ""))):
            yield f"{path}.image", f"{container.get('image')!r} has no digest"


def real_digest(pod: Pod) -> Iterator[Fault]:
    """No placeholder is left."""
    for path, container in pod.containers():
        if str(container.get("image", "")).endswith(ZEROS):
            yield f"{path}.image", "its digest is the placeholder of zeros"


def no_api_token(pod: Pod) -> Iterator[Fault]:
    """No way to the API unless the pod is named among the permissions."""
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.path}.spec.automountServiceAccountToken".lstrip("."), "is not false"
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        for source in at(volume, "projected.sources") or []:
            token = source.get("serviceAccountToken")
            if token is not None and not token.get("audience"):
                yield f"{pod.path}.spec.volumes[{number}]", "mounts a token that the API takes"


def own_account(pod: Pod) -> Iterator[Fault]:
    """An account of its own, so that rights are those of one kind of pod."""
    if pod.spec.get("serviceAccountName", "default") == "default":
        yield f"{pod.path}.spec.serviceAccountName".lstrip("."), "is missing or `default`"


def no_secret_by_value(pod: Pod) -> Iterator[Fault]:
    """Environment, command lines, labels and annotations hold no secret."""
    for path, container in pod.containers():
        yield from ((f"{path}.env", what) for what in secret_in_env(container.get("env") or []))
        words = [*(container.get("command") or []), *(container.get("args") or [])]
        yield from ((f"{path}.command", what) for what in secret_in_words(words))
    for name, told in (("labels", pod.labels), ("annotations", pod.annotations)):
        yield from ((f"{pod.path}.metadata.{name}".lstrip("."), what) for what in secret_in_words(told.values()))


def workers_own_secrets(pod: Pod) -> Iterator[Fault]:
    """A Ray pod reads no Secret of the steps that launch it."""
    if pod.owner.get("kind") not in RAY_KINDS:
        return
    for path, container in pod.containers():
        named = [at(one, "valueFrom.secretKeyRef.name") for one in container.get("env") or []]
        named += [at(one, "secretRef.name") for one in container.get("envFrom") or []]
        yield from ((f"{path}.env", f"reads {name}") for name in named if name in LAUNCHERS_OWN)
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        named = [at(volume, "secret.secretName"), *(at(one, "secret.name") for one in at(volume, "projected.sources") or [])]
        yield from ((f"{pod.path}.spec.volumes[{number}]", f"mounts {name}") for name in named if name in LAUNCHERS_OWN)


PROFILE = (
    "the restricted profile of Pod Security: the namespace refuses the pod otherwise, and a break-out starts with these rights"
)
RULES = (
    Rule("non-root", "pod", PROFILE, "set runAsNonRoot: true and runAsUser to the image's number, 10001 for ours", non_root),
    Rule(
        "no-privilege",
        "pod",
        PROFILE,
        "set allowPrivilegeEscalation: false and capabilities: {drop: [ALL]} in each container",
        no_privilege,
    ),
    Rule("seccomp", "pod", PROFILE, "set seccompProfile: {type: RuntimeDefault} on the pod", seccomp),
    Rule("no-host", "pod", PROFILE, "take volumes of the cluster, and ports of the pod", no_host),
    Rule(
        "read-only-root",
        "pod",
        "who gets in cannot leave a program behind, and a full disk is the pod's own",
        "set readOnlyRootFilesystem: true and mount emptyDir volumes with a sizeLimit where the program writes",
        read_only_root,
    ),
    Rule(
        "limits",
        "pod",
        "one pod must not starve a node; Kueue counts requests and Ray reads limits, so they must agree there",
        "give cpu and memory in requests and limits; the same numbers in Ray pods",
        limits,
    ),
    Rule(
        "image-by-digest",
        "pod",
        "a tag may mean another image tomorrow, and the lineage names what ran",
        "write NAME@sha256:DIGEST, in kustomize with `images:`",
        by_digest,
    ),
    Rule(
        "real-digest",
        "pod",
        "sixty-four zeros are the place where your image's digest belongs",
        "`kustomize edit set image NAME=NAME@sha256:...`",
        real_digest,
        for_release=True,
    ),
    Rule(
        "no-api-token",
        "pod",
        "code of a model or data set that runs in a worker must not reach the Kubernetes API",
        "set automountServiceAccountToken: false on the pod; a pod that needs the API gets a line in infra/policy/permissions.py",
        no_api_token,
    ),
    Rule(
        "own-account",
        "pod",
        "rights of `default` are those of every pod",
        "name one of infra/kubernetes/base/access/accounts.yaml",
        own_account,
    ),
    Rule(
        "no-secret-by-value",
        "pod",
        "what stands in a manifest is read by everyone who may read the cluster, or Git",
        "name a Secret: valueFrom.secretKeyRef, or a mounted file",
        no_secret_by_value,
    ),
    Rule(
        "workers-own-secrets",
        "pod",
        "code of a model or data set that runs in a worker must not sign what it made, register it, or write where the launcher may",
        "give Ray pods biovlm-store-train (BIOVLM_RAY_SECRETS) alone; steps sign and register for them",
        workers_own_secrets,
    ),
)

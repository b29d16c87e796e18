"""What a cluster is, asked before anything is started on it: versions, definitions, secrets, and whether it would take a RayJob.

1. `version` and `served` read what every account may read: the server's version, and which versions of an API group it serves.
2. `has_secret` asks for the metadata of a Secret alone: its values never leave the server.
3. `would_take` sends a RayJob that is checked as a real one is (schema, admission, rights) and not kept: a dry run.

Each asks once. Nothing is made or changed.
"""

from __future__ import annotations

from typing import Any

import kubernetes

from components.platform.kuberay.client import BROKEN, Object, connect, refuse
from components.platform.kuberay.manifest import GROUP, PLURAL, VERSION
from model.errors import InternalError

ASK_SECONDS = 10.0
METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class Survey:
    """Questions to one cluster about one namespace. All raise RefusedError for a refused token, InternalError where nobody answers.

    Args:
        namespace: Of the Ray jobs.
    """

    def __init__(self, namespace: str) -> None:
        """Errors as `client.connect`."""
        self.namespace, self._client = namespace, connect()

    def version(self) -> tuple[int, int]:
        """Major and minor version of the server. RefusedError: it does not say."""
        said = self._ask("read its version", "/version") or {}
        return _number(said.get("major", "")), _number(said.get("minor", ""))

    def served(self, group: str) -> list[str]:
        """Versions of an API group that the server serves, the preferred one first; empty if its definitions are not installed."""
        found = self._ask(f"ask for the API group {group}", f"/apis/{group}")
        return [str(one["version"]) for one in (found or {}).get("versions", [])]

    def has_secret(self, name: str) -> bool | None:
        """Whether the namespace has a Secret of that name; None if this account may not see it."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets/{name}"
        try:
            return self._ask(f"look for the Secret {name}", path, accept=METADATA_ALONE) is not None
        except _ForbiddenError:
            return None

    def would_take(self, job: Object) -> bool:
        """Whether this account may start such a RayJob. ConfigError: the server refuses the job itself, and says why.

        Args:
            job: A RayJob, whose name need not be free.
        """
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"
        query = [("dryRun", "All"), ("fieldValidation", "Strict")]
        try:
            self._ask("start a RayJob", path, method="POST", query=query, body=job)
        except _ForbiddenError:
            return False
        except kubernetes.client.ApiException:  # 409: it has passed all checks, and there is one of this name
            return True
        return True

    def _ask(self, what: str, path: str, method: str = "GET", accept: str = "application/json", **more: Any) -> Object | None:
        """What the server answers; None for 404."""
        try:
            answer = self._client.call_api(
                path,
                method,
                header_params={"Accept": accept, "Content-Type": "application/json"},
                query_params=more.get("query", []),
                body=more.get("body"),
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=ASK_SECONDS,
            )
        except kubernetes.client.ApiException as error:
            if error.status == 404:
                return None
            if error.status == 403:
                raise _ForbiddenError from None
            refuse(what, error)
        except BROKEN as error:
            raise InternalError(
                f"cannot {what}: the API server does not answer ({type(error).__name__})",
                "see whether KUBECONFIG names the right one",
            ) from None
        return dict(answer)


class _ForbiddenError(Exception):
    """This account may not."""


def _number(text: str) -> int:
    """`32` of `32+`, as some vendors write it."""
    digits = "".join(character for character in str(text) if character.isdigit())
    return int(digits) if digits else 0

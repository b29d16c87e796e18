"""The edge to Kubernetes: the few calls that a launcher makes, with the real client.

1. `connect` takes the pod's service account, or the user's kubeconfig.
2. Every call goes through `_call`: what passes by itself (5xx, 429, a broken connection) is tried again with growing pauses, at most
   `patience_seconds`; a token that the server refuses is read again once; all else becomes a letter.
3. `looks` yields the job as often as it changes: a watch, and a plain read whenever the watch ends, breaks or is too old.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import kubernetes
import urllib3

from components.platform.kuberay.manifest import GROUP, PLURAL, VERSION
from model.errors import BiovlmError, ConfigError, InternalError, MissingInputError, RefusedError

KUEUE_GROUP, KUEUE_VERSIONS = "kueue.x-k8s.io", ("v1beta2", "v1beta1")
PASSES = frozenset({408, 429, 500, 502, 503, 504})
BROKEN = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
CALL_SECONDS = 30.0
WATCH_SECONDS = 30
PATIENCE_SECONDS = 900.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

Object = dict[str, Any]
Answer = TypeVar("Answer")


def connect() -> Any:
    """A client for the cluster that this process is in, or that the user's kubeconfig names. MissingInputError: neither is there."""
    configuration = kubernetes.client.Configuration()
    configuration.retries = False
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException:
        try:
            kubernetes.config.load_kube_config(client_configuration=configuration)
        except (kubernetes.config.ConfigException, OSError):
            raise MissingInputError(
                "no cluster: neither a service account nor a kubeconfig", "run in a pod, or set KUBECONFIG"
            ) from None
    return kubernetes.client.ApiClient(configuration)


class _Conflict(Exception):
    """Someone changed the object since it was read."""


class Cluster:
    """RayJobs of one namespace.

    Args:
        namespace: Where.
        connection: Makes an API client; called again when a token was refused.
        patience_seconds: How long a server that does not answer is asked again.
        clock: Seconds, monotonic.
        sleep: Waits for that many seconds.
    """

    def __init__(
        self,
        namespace: str,
        connection: Callable[[], Any] = connect,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.namespace, self._connection, self._patience = namespace, connection, patience_seconds
        self._clock, self._sleep = clock, sleep
        self._objects: Any = None

    def create(self, body: Object) -> bool:
        """Start the RayJob; False if there is one of its name. MissingInputError: no KubeRay, or no such namespace. Errors as `_call`."""
        try:
            self._call(
                "create the RayJob",
                lambda api: self._rayjobs(api.create_namespaced_custom_object, body, field_validation="Strict"),
            )
        except kubernetes.client.ApiException as error:
            if error.status == 409:
                return False
            raise self._not_installed(error) from None
        return True

    def read(self, name: str) -> Object | None:
        """The RayJob of that name; None if there is none. Errors as `_call`."""
        return self._found("read the RayJob", lambda api: self._rayjobs(api.get_namespaced_custom_object, name))

    def jobs(self, selector: str) -> list[Object]:
        """RayJobs with these labels. Errors as `create`."""
        try:
            answer = self._call(
                "list RayJobs", lambda api: self._rayjobs(api.list_namespaced_custom_object, label_selector=selector)
            )
        except kubernetes.client.ApiException as error:
            raise self._not_installed(error) from None
        return list(answer["items"])

    def delete(self, job: Object) -> None:
        """Delete this very RayJob and what it owns; nothing happens if it is gone, or another has its name. Errors as `_call`."""
        body = {"preconditions": {"uid": job["metadata"]["uid"]}, "propagationPolicy": "Background"}
        name = job["metadata"]["name"]
        with contextlib.suppress(kubernetes.client.ApiException):
            self._found("delete the RayJob", lambda api: self._rayjobs(api.delete_namespaced_custom_object, name, body=body))

    def own(self, name: str, owner: Object) -> None:
        """Add an owner to the RayJob, so that it outlives the launcher before. Another's change in between is read again."""
        while (job := self.read(name)) is not None:
            metadata = job["metadata"]
            owners = metadata.get("ownerReferences") or []
            if any(known["uid"] == owner["uid"] for known in owners):
                return
            patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "ownerReferences": [*owners, owner]}}
            with contextlib.suppress(_Conflict):
                self._patch(name, patch)
                return

    def _patch(self, name: str, patch: Object) -> None:
        try:
            self._found("own the RayJob", lambda api: self._rayjobs(api.patch_namespaced_custom_object, name, patch))
        except kubernetes.client.ApiException as error:
            if error.status == 409:
                raise _Conflict from None
            raise

    def looks(self, name: str) -> Iterator[Object | None]:
        """The RayJob now, and whenever it changed or WATCH_SECONDS passed; None when it is gone. Errors as `_call`."""
        while True:
            began, job = self._clock(), self.read(name)
            yield job
            # A watch may break off or be too old; what matters is read again, and `read` says what is wrong.
            with contextlib.suppress(kubernetes.client.ApiException, *BROKEN, ValueError):
                if job is not None:
                    yield from self._watch(name, job["metadata"]["resourceVersion"])
            self._sleep(max(0.0, FIRST_PAUSE - (self._clock() - began)))

    def waits_for(self, job: Object) -> str:
        """Why Kueue has not admitted the job, in its own words; empty if nobody says, or we may not ask."""
        selector = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
        for version in KUEUE_VERSIONS:
            with contextlib.suppress(kubernetes.client.ApiException, BiovlmError, *BROKEN):
                answer = self._api().list_namespaced_custom_object(
                    KUEUE_GROUP, version, self.namespace, "workloads", label_selector=selector, _request_timeout=CALL_SECONDS
                )
                conditions = [c for item in answer["items"] for c in (item.get("status") or {}).get("conditions", [])]
                return next(
                    (c.get("message", "")[:200] for c in conditions if c["type"] == "QuotaReserved" and c["status"] == "False"),
                    "",
                )
        return ""

    def cluster_queue(self, queue: str) -> Object | None:
        """The ClusterQueue behind a LocalQueue; None if we may not read it. MissingInputError: there is no such LocalQueue."""
        for version in KUEUE_VERSIONS:
            try:
                local = self._api().get_namespaced_custom_object(KUEUE_GROUP, version, self.namespace, "localqueues", queue)
                return dict(
                    self._api().get_cluster_custom_object(KUEUE_GROUP, version, "clusterqueues", local["spec"]["clusterQueue"])
                )
            except kubernetes.client.ApiException as error:
                if error.status == 404 and f"localqueues.{KUEUE_GROUP}" in (error.body or ""):
                    message = f"there is no LocalQueue {queue} in the namespace {self.namespace}"
                    raise MissingInputError(message, "a pool's `queue` names one that infra/kubernetes installs") from None
            except BROKEN:
                return None
        return None

    def _watch(self, name: str, version: str) -> Iterator[Object | None]:
        events = kubernetes.watch.Watch().stream(
            self._api().list_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            field_selector=f"metadata.name={name}",
            resource_version=version,
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=WATCH_SECONDS + CALL_SECONDS,
        )
        for event in events:
            yield None if event["type"] == "DELETED" else event["object"]

    def _not_installed(self, error: Any) -> BiovlmError:
        said = " ".join((error.body or error.reason or "").split())[:200]
        return MissingInputError(
            f"the cluster knows no RayJobs in the namespace {self.namespace} ({error.status}): {said}",
            "install KubeRay and the namespace as infra/README.md says",
        )

    def _api(self) -> Any:
        if self._objects is None:
            self._objects = kubernetes.client.CustomObjectsApi(self._connection())
        return self._objects

    def _rayjobs(self, method: Callable[..., Any], *rest: Any, **options: Any) -> Any:
        return method(GROUP, VERSION, self.namespace, PLURAL, *rest, _request_timeout=CALL_SECONDS, **options)

    def _found(self, what: str, call: Callable[[Any], Object]) -> Object | None:
        try:
            return self._call(what, call)
        except kubernetes.client.ApiException as error:
            if error.status != 404:
                raise
            return None

    def _call(self, what: str, call: Callable[[Any], Answer]) -> Answer:
        """The answer of `call`.

        Raises:
            RefusedError: The token, or the right to do it, is refused. ConfigError: The server says that what was sent is wrong.
            InternalError: The server did not answer for too long; the job is left as it is.
            ApiException: 404 and 409, which mean something to who asked.
        """
        began, pause, refreshed = self._clock(), FIRST_PAUSE, False
        while True:
            try:
                return call(self._api())
            except kubernetes.client.ApiException as error:
                if error.status == 401 and not refreshed:
                    refreshed, self._objects = True, None  # a pod's token is renewed in its file
                    continue
                if error.status not in PASSES:
                    refuse(what, error)
                last: Exception = error
            except BROKEN as error:
                last = error
            if self._clock() - began >= self._patience:
                said = getattr(last, "status", None) or type(last).__name__
                raise InternalError(
                    f"cannot {what}: the API server did not answer for {self._patience / 60:.0f} min (last: {said})",
                    "the Ray job goes on; start the step again when the server is back, and it is adopted",
                ) from None
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def refuse(what: str, error: Any) -> None:
    """The letter for an answer that will not change; 404 and 409 go on to who asked."""
    said = " ".join((error.body or error.reason or "").split())[:300]
    match error.status:
        case 404 | 409:
            raise error
        case 401:
            raise RefusedError(
                f"cannot {what}: the API server does not know this token (401)",
                "it has expired: log in again, or see the pod's service account",
            ) from None
        case 403:
            raise RefusedError(f"cannot {what}: forbidden (403): {said}", "the launcher's role is in infra/kubernetes") from None
        case 400 | 422:
            raise ConfigError(
                f"cannot {what}: the API server refuses it ({error.status}): {said}",
                "the installed KubeRay may be of another version",
            ) from None
    raise InternalError(f"cannot {what}: the API server says {error.status}: {said}", "see its log") from None

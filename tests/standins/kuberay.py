"""A stand-in for a Kubernetes API server with KubeRay and Kueue, for the real `kubernetes` client.

It is a real HTTP server on the loopback interface. It answers what a launcher asks, as strictly as the original:

1. A token is wanted (401), and rights can be taken away (403). A path, a method, a query parameter or a content type that the original
   does not have is an error here.
2. A RayJob that is created or patched is checked against the published schema with `fieldValidation: Strict` (400), gets the schema's
   defaults, a uid and a resourceVersion. A second one of the same name is 409, a patch on an old resourceVersion too, a deletion with
   another uid too. `status` cannot be written by a client. A deletion waits for KubeRay's finalizer.
3. KubeRay's and Kueue's own rules (components/platform/kuberay/rules.py, which have a table of their own) lead to `ValidationFailed`.
4. Controllers are played by a script: a list of steps, one for each look at a job (a read or a watch event). A step changes the
   job (`status`, `admit`, `evict`), deletes it (`vanish`), or breaks something (`fail`, `drop`, `too_old`).

What it cannot prove: that a real KubeRay reaches these states at these moments, pods, networks, timing, admission webhooks, RBAC rules,
garbage collection by owners. Sequences of states are from KubeRay 1.7's rayjob_controller.go.
"""

from __future__ import annotations

import copy
import datetime
import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from components.platform.kuberay.rules import violations
from tests.standins.crd import crd

NAMESPACE, TOKEN = "biovlm", "a-token"
FINALIZER = "ray.io/rayjob-finalizer"
OVER = ("Complete", "Failed", "ValidationFailed")  # nobody touches such a job any more
QUERY = {
    ("POST", False): {"fieldValidation", "fieldManager"},
    ("GET", False): {"labelSelector", "fieldSelector", "watch", "resourceVersion", "timeoutSeconds", "allowWatchBookmarks"},
    ("GET", True): set(),
    ("PATCH", True): {"fieldValidation", "fieldManager"},
    ("DELETE", True): set(),
}


def status(deployment, job="", **more):
    """KubeRay writes the status."""

    def play(cluster, body):
        body["status"] = {**body.get("status", {}), "jobDeploymentStatus": deployment, "jobStatus": job, **more}

    return play


def admit():
    """Kueue admits the job: KubeRay begins."""

    def play(cluster, body):
        body["spec"]["suspend"] = False
        status("Initializing")(cluster, body)

    return play


def evict():
    """Kueue takes the job's machines: KubeRay deletes the cluster and forgets the job's status."""

    def play(cluster, body):
        body["spec"]["suspend"] = True
        body["status"] = {"jobDeploymentStatus": "Suspended", "jobStatus": ""}

    return play


def vanish():
    """Someone deletes the job."""
    return lambda cluster, body: cluster.remove(body["metadata"]["name"])


def fail(code, times=1):
    """The server answers the next requests with `code`."""
    return lambda cluster, body: cluster.faults.extend([code] * times)


def drop():
    """The connection of the watch breaks in the middle of a line."""
    return lambda cluster, body: cluster.faults.append("drop")


def too_old():
    """The watch's resourceVersion is forgotten: an ERROR event of 410."""
    return lambda cluster, body: cluster.faults.append("too old")


RUNNING = status("Running", "RUNNING", rayJobInfo={"startTime": "2026-01-01T00:00:00Z"})
SUCCEEDED = status("Complete", "SUCCEEDED")


class KubeRay:
    """The server; `with KubeRay(script) as cluster:` runs it."""

    def __init__(self, script=(), linger=1):
        self.script, self.linger = list(script), linger
        self.jobs, self.created, self.requests, self.faults = {}, [], [], []
        self.tokens, self.forbidden, self.workloads = {TOKEN}, set(), []
        self.queues, self.cluster_queues = {}, {}
        self.queue("biovlm-l4", {"nvidia.com/gpu": 8})
        self.lock = threading.RLock()
        self._version = 100
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def queue(self, name, quota, **spec):
        """Install a LocalQueue and its ClusterQueue with one flavor; both are checked against their published schemas."""
        quota = {"cpu": 256, "memory": "2Ti"} | quota
        resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
        flavor = {"name": name, "resources": resources}
        group = {"coveredResources": list(quota), "flavors": [flavor]}
        head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "metadata": {"name": name}}
        local = {**head, "kind": "LocalQueue", "spec": {"clusterQueue": name}}
        whole = {**head, "kind": "ClusterQueue", "spec": {"resourceGroups": [group], **spec}}
        for kind, body in (("localqueues", local), ("clusterqueues", whole)):
            assert not crd(f"kueue/kueue.x-k8s.io_{kind}.yaml", "v1beta2").errors(body)
        self.queues[name], self.cluster_queues[name] = local, whole

    def hold(self, after):
        """Called with each request before and after it is carried out; a test may stop it here."""

    def touch(self, body):
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)

    def remove(self, name):
        self.jobs.pop(name, None)

    def advance(self, name):
        """The next step of the script happens to the job."""
        body = self.jobs.get(name)
        if body is None:
            return
        if body["metadata"].get("deletionTimestamp"):
            self.linger -= 1
            if self.linger <= 0:
                self.remove(name)
        elif self.script and body.get("status", {}).get("jobDeploymentStatus") not in OVER:
            self.script.pop(0)(self, body)
            self.touch(body)

    def add(self, body):
        """What the API server and, at once, KubeRay's validation make of a new RayJob."""
        made = crd("kuberay/ray.io_rayjobs.yaml").defaulted(copy.deepcopy(body))
        made.pop("status", None)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now, "generation": 1, "finalizers": [FINALIZER]}
        made["metadata"].setdefault("namespace", NAMESPACE)
        if found := violations(body):
            made["status"] = {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": found[0]}
            self.script = []
        self.touch(made)
        self.jobs[made["metadata"]["name"]] = made
        self.created.append(copy.deepcopy(made))
        return made


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }


def merge(target, patch):
    """JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def selected(body, query):
    labels = body["metadata"].get("labels", {})
    wanted = [part.partition("=")[::2] for part in query.get("labelSelector", "").split(",") if part]
    name = query.get("fieldSelector", "").partition("metadata.name=")[2]
    return all(labels.get(key) == value for key, value in wanted) and name in ("", body["metadata"]["name"])


def _handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def _do(self):
            try:
                answer = self._answer()
                cluster.hold(after=True)
                self._send(200, answer)
            except Refused as refused:
                self._send(refused.code, refused.body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _do

        def _answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            sent = json.loads(self.rfile.read(length)) if length else None
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            parts = [part for part in url.path.split("/") if part]
            with cluster.lock:
                cluster.requests.append((self.command, url.path, query))
            cluster.hold(after=False)
            with cluster.lock:
                self._allowed(parts)
                if parts[:2] == ["apis", "kueue.x-k8s.io"]:
                    return self._kueue(parts[2:])
                if parts[:5] != ["apis", "ray.io", "v1", "namespaces", NAMESPACE] or parts[5:6] != ["rayjobs"] or len(parts) > 7:
                    raise Refused(404, "NotFound", "404 page not found")
                named = len(parts) == 7
                if (self.command, named) not in QUERY:
                    raise Refused(405, "MethodNotAllowed", f"{self.command} is not allowed here")
                if unknown := set(query) - QUERY[self.command, named]:
                    raise Refused(400, "BadRequest", f"unknown query parameters {unknown}")
                if named:
                    return self._one(parts[6], sent)
                if self.command == "POST":
                    return self._create(sent, query)
                if query.get("watch") not in ("true", "True"):
                    items = [copy.deepcopy(body) for body in cluster.jobs.values() if selected(body, query)]
                    return {"apiVersion": "ray.io/v1", "kind": "RayJobList", "metadata": {}, "items": items}
            return self._watch(query)

        def _allowed(self, parts):
            if self.headers.get("Authorization") not in {f"Bearer {token}" for token in cluster.tokens}:
                raise Refused(401, "Unauthorized", "Unauthorized")
            resource = next((part for part in ("rayjobs", "workloads", "localqueues", "clusterqueues") if part in parts), "")
            if (self.command, resource) in cluster.forbidden:
                raise Refused(403, "Forbidden", f"{resource} is forbidden: User cannot {self.command} it")
            if resource == "rayjobs" and cluster.faults and isinstance(cluster.faults[0], int):
                code = cluster.faults.pop(0)
                raise Refused(code, "InternalError", "etcd is electing a leader")

        def _create(self, sent, query):
            if query.get("fieldValidation") != "Strict":
                raise Refused(
                    400,
                    "BadRequest",
                    "this stand-in wants fieldValidation=Strict: the server would else drop what it does not know",
                )
            if errors := crd("kuberay/ray.io_rayjobs.yaml").errors(sent):
                raise Refused(400, "BadRequest", f"strict decoding error: {'; '.join(errors[:5])}")
            if sent["metadata"]["name"] in cluster.jobs:
                raise Refused(409, "AlreadyExists", f'rayjobs.ray.io "{sent["metadata"]["name"]}" already exists')
            return cluster.add(sent)

        def _one(self, name, sent):
            if self.command == "GET":
                cluster.advance(name)
            body = cluster.jobs.get(name)
            if body is None:
                raise Refused(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
            if self.command == "PATCH":
                return self._patch(body, sent)
            if self.command == "DELETE":
                if (uid := (sent or {}).get("preconditions", {}).get("uid")) and uid != body["metadata"]["uid"]:
                    raise Refused(409, "Conflict", "Precondition failed: UID in precondition differs")
                body["metadata"].setdefault("deletionTimestamp", body["metadata"]["creationTimestamp"])
                cluster.touch(body)
            return copy.deepcopy(body)

        def _patch(self, body, sent):
            if self.headers.get("Content-Type") != "application/merge-patch+json":
                raise Refused(415, "UnsupportedMediaType", f"{self.headers.get('Content-Type')} is not a merge patch")
            patched = merge(body, sent)
            if patched["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", "the object has been modified; please apply your changes to the latest version")
            patched["status"] = body.get("status", {})
            if errors := crd("kuberay/ray.io_rayjobs.yaml").errors(patched):
                raise Refused(422, "Invalid", "; ".join(errors[:5]))
            cluster.touch(patched)
            cluster.jobs[body["metadata"]["name"]] = patched
            return copy.deepcopy(patched)

        def _kueue(self, parts):
            if parts[0] != "v1beta2":
                raise Refused(404, "NotFound", "404 page not found")
            match self.command, parts[1:]:
                case "GET", ["namespaces", _, "workloads"]:
                    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadList", "items": cluster.workloads}
                case "GET", ["namespaces", _, "localqueues", name]:
                    if name in cluster.queues:
                        return cluster.queues[name]
                    raise Refused(404, "NotFound", f'localqueues.kueue.x-k8s.io "{name}" not found')
                case "GET", ["clusterqueues", name] if name in cluster.cluster_queues:
                    return cluster.cluster_queues[name]
            raise Refused(404, "NotFound", "404 page not found")

        def _watch(self, query):
            """All that happens to the selected job until the script is played, then the watch ends as after its timeout."""
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            name = query["fieldSelector"].partition("metadata.name=")[2]
            with cluster.lock:
                before = copy.deepcopy(cluster.jobs.get(name))
                cluster.advance(name)
                after = copy.deepcopy(cluster.jobs.get(name))
                fault = cluster.faults.pop(0) if cluster.faults and isinstance(cluster.faults[0], str) else ""
            if fault == "drop":
                self._chunk('{"type": "MODIFIED", "object": {"kind": "Ray')
                self.close_connection = True
                self.connection.close()
                raise BrokenPipeError
            if fault == "too old":
                self._event("ERROR", Refused(410, "Expired", "too old resource version").body)
            elif after is None and before is not None:
                self._event("DELETED", before)
            elif after != before:
                self._event("MODIFIED", after)
            self.wfile.write(b"0\r\n\r\n")
            return

        def _event(self, kind, body):
            self._chunk(json.dumps({"type": kind, "object": body}) + "\n")

        def _chunk(self, text):
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _send(self, code, body):
            if body is None:
                return
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler

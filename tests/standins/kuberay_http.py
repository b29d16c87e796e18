"""The HTTP side of the stand-in for KubeRay: paths, rights, status codes, watches. See tests/standins/kuberay.py."""

from __future__ import annotations

import copy
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.standins import kubernetes_core
from tests.standins.crd import crd

NAMESPACE = "biovlm"
QUERY = {
    ("POST", False): {"fieldValidation", "fieldManager", "dryRun"},
    ("GET", False): {"labelSelector", "fieldSelector", "watch", "resourceVersion", "timeoutSeconds", "allowWatchBookmarks"},
    ("GET", True): set(),
    ("PATCH", True): {"fieldValidation", "fieldManager"},
    ("DELETE", True): set(),
}


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


class Handler(BaseHTTPRequestHandler):
    """Answers for the stand-in in `cluster`, which `serve` sets."""

    cluster: Any = None

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _do(self):
        try:
            answer = self._answer()
            self.cluster.hold(after=True)
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
        with self.cluster.lock:
            self.cluster.requests.append((self.command, url.path, query))
        self.cluster.hold(after=False)
        with self.cluster.lock:
            self._allowed(parts)
            if self.command == "GET" and (
                found := kubernetes_core.answer(self.cluster, NAMESPACE, parts, self.headers.get("Accept"), Refused)
            ):
                return found
            if parts[:2] == ["apis", "kueue.x-k8s.io"]:
                return self._kueue(parts[2:])
            if (
                not self.cluster.installed
                or parts[:5] != ["apis", "ray.io", "v1", "namespaces", NAMESPACE]
                or parts[5:6] != ["rayjobs"]
                or len(parts) > 7
            ):
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
                items = [copy.deepcopy(body) for body in self.cluster.jobs.values() if selected(body, query)]
                return {"apiVersion": "ray.io/v1", "kind": "RayJobList", "metadata": {}, "items": items}
        return self._watch(query)

    def _allowed(self, parts):
        if self.headers.get("Authorization") not in {f"Bearer {token}" for token in self.cluster.tokens}:
            raise Refused(401, "Unauthorized", "Unauthorized")
        resource = next(
            (part for part in ("rayjobs", "workloads", "localqueues", "clusterqueues", "secrets") if part in parts), ""
        )
        if (self.command, resource) in self.cluster.forbidden:
            raise Refused(403, "Forbidden", f"{resource} is forbidden: User cannot {self.command} it")
        if resource == "rayjobs" and self.cluster.faults and isinstance(self.cluster.faults[0], int):
            code = self.cluster.faults.pop(0)
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
        if sent["metadata"]["name"] in self.cluster.jobs:
            raise Refused(409, "AlreadyExists", f'rayjobs.ray.io "{sent["metadata"]["name"]}" already exists')
        if "dryRun" in query:
            if query["dryRun"] != "All":
                raise Refused(400, "BadRequest", f"dryRun is {query['dryRun']}, only All is known")
            return sent
        return self.cluster.add(sent)

    def _one(self, name, sent):
        if self.command == "GET":
            self.cluster.advance(name)
        body = self.cluster.jobs.get(name)
        if body is None:
            raise Refused(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        if self.command == "PATCH":
            return self._patch(body, sent)
        if self.command == "DELETE":
            if (uid := (sent or {}).get("preconditions", {}).get("uid")) and uid != body["metadata"]["uid"]:
                raise Refused(409, "Conflict", "Precondition failed: UID in precondition differs")
            body["metadata"].setdefault("deletionTimestamp", body["metadata"]["creationTimestamp"])
            self.cluster.touch(body)
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
        self.cluster.touch(patched)
        self.cluster.jobs[body["metadata"]["name"]] = patched
        return copy.deepcopy(patched)

    def _kueue(self, parts):
        if parts[0] != "v1beta2":
            raise Refused(404, "NotFound", "404 page not found")
        match self.command, parts[1:]:
            case "GET", ["namespaces", _, "workloads"]:
                return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadList", "items": self.cluster.workloads}
            case "GET", ["namespaces", _, "localqueues", name]:
                if name in self.cluster.queues:
                    return self.cluster.queues[name]
                raise Refused(404, "NotFound", f'localqueues.kueue.x-k8s.io "{name}" not found')
            case "GET", ["clusterqueues", name] if name in self.cluster.cluster_queues:
                return self.cluster.cluster_queues[name]
        raise Refused(404, "NotFound", "404 page not found")

    def _watch(self, query):
        """All that happens to the selected job until the script is played, then the watch ends as after its timeout."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        name = query["fieldSelector"].partition("metadata.name=")[2]
        with self.cluster.lock:
            before = copy.deepcopy(self.cluster.jobs.get(name))
            self.cluster.advance(name)
            after = copy.deepcopy(self.cluster.jobs.get(name))
            fault = self.cluster.faults.pop(0) if self.cluster.faults and isinstance(self.cluster.faults[0], str) else ""
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


def serve(cluster):
    """A server on a free port of the loopback interface; it does not run yet."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    return server

"""A stand-in for a Kubernetes API server with KubeRay and Kueue, for the real `kubernetes` client.

It is a real HTTP server on the loopback interface. It answers what a launcher asks, as strictly as the original:

1. A token is wanted (401), and rights can be taken away (403). A path, a method, a query parameter or a content type that the original
   does not have is an error here.
2. A RayJob that is created or patched is checked against the published schema with `fieldValidation: Strict` (400), gets the schema's
   defaults, a uid and a resourceVersion. A second one of the same name is 409, a patch on an old resourceVersion too, a deletion with
   another uid too. `status` cannot be written by a client. A deletion waits for KubeRay's finalizer.
3. KubeRay's and Kueue's own rules (components/platform/kuberay/rules.py, which have a table of their own) lead to `ValidationFailed`.
4. Its version, API groups and Secrets' metadata are in tests/standins/kubernetes_core.py; a dry run is checked and not kept.
5. Controllers are played by a script: a list of steps, one for each look at a job (a read or a watch event). A step changes the
   job (`status`, `admit`, `evict`), deletes it (`vanish`), or breaks something (`fail`, `drop`, `too_old`).

What it cannot prove: that a real KubeRay reaches these states at these moments, pods, networks, timing, admission webhooks, RBAC rules,
garbage collection by owners. Sequences of states are from KubeRay 1.7's rayjob_controller.go.
"""

from __future__ import annotations

import copy
import datetime
import threading
import uuid

from components.platform.kuberay.rules import violations
from tests.standins.crd import crd
from tests.standins.kuberay_http import NAMESPACE, serve

TOKEN = "a-token"
FINALIZER = "ray.io/rayjob-finalizer"
OVER = ("Complete", "Failed", "ValidationFailed")  # nobody touches such a job any more


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
        self.installed = True
        self.tokens, self.forbidden, self.workloads = {TOKEN}, set(), []
        self.queues, self.cluster_queues = {}, {}
        self.version, self.secrets = ("1", "32"), {"biovlm-store", "biovlm-tracking", "biovlm-signing", "biovlm-trusted-keys"}
        self.groups = {"ray.io": ["v1"], "kueue.x-k8s.io": ["v1beta2", "v1beta1"]}
        self.queue("biovlm-l4", {"nvidia.com/gpu": 8})
        self.lock = threading.RLock()
        self._version = 100
        self._server = serve(self)
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

"""Rules for objects: secrets, deadlines, Ray, what is reached from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from infra.policy.documents import Object, at, pods, ray_specs
from infra.policy.rule import Fault, Rule
from infra.policy.secrets import secret_in_words

OLDEST_RAY_WITH_TOKEN = (2, 52)
CLIENT_PORT = 10001
REACHED_KINDS = {"Ingress", "Gateway", "HTTPRoute", "GRPCRoute", "TCPRoute", "VirtualService", "Route"}


def no_secret_object(document: Object) -> Iterator[Fault]:
    """No Secret with content, and no secret in a ConfigMap."""
    if document["kind"] == "Secret" and (document.get("data") or document.get("stringData")):
        yield "data", "holds a secret's content"
    if document["kind"] == "ConfigMap":
        for key, text in (document.get("data") or {}).items():
            yield from ((f"data.{key}", what) for what in secret_in_words([text]))


def restricted_namespace(document: Object) -> Iterator[Fault]:
    """The cluster itself refuses what these rules refuse."""
    name = "pod-security.kubernetes.io/enforce"
    if document["kind"] == "Namespace" and (at(document, "metadata.labels") or {}).get(name) != "restricted":
        yield f"metadata.labels.{name}", "is not restricted"


def deadlines(document: Object) -> Iterator[Fault]:
    """What works has an end, and is not started twice."""
    wanted = {
        "Job": ["spec.activeDeadlineSeconds", "spec.backoffLimit", "spec.ttlSecondsAfterFinished"],
        "CronJob": [
            "spec.jobTemplate.spec.activeDeadlineSeconds",
            "spec.jobTemplate.spec.backoffLimit",
            "spec.startingDeadlineSeconds",
        ],
        "RayJob": ["spec.activeDeadlineSeconds", "spec.preRunningDeadlineSeconds"],
    }
    for path in wanted.get(document["kind"], []):
        if not isinstance(at(document, path), int):
            yield path, "is missing"
    if document["kind"] == "CronJob" and at(document, "spec.concurrencyPolicy") != "Forbid":
        yield "spec.concurrencyPolicy", f"is {at(document, 'spec.concurrencyPolicy')}"
    if document["kind"] == "RayJob" and at(document, "spec.shutdownAfterJobFinishes") is not True:
        yield "spec.shutdownAfterJobFinishes", "is not true"


def queued(document: Object) -> Iterator[Fault]:
    """Ray takes nodes through Kueue only."""
    labels = at(document, "metadata.labels") or {}
    if document["kind"] in ("RayJob", "RayCluster") and not labels.get("kueue.x-k8s.io/queue-name"):
        yield "metadata.labels.kueue.x-k8s.io/queue-name", "is missing"
    if document["kind"] == "RayJob" and at(document, "spec.clusterSelector"):
        yield "spec.clusterSelector", "takes a cluster past every queue"


def ray_token(document: Object) -> Iterator[Fault]:
    """Whoever speaks to Ray shows a token."""
    for path, spec in ray_specs(document):
        if at(spec, "authOptions.mode") != "token":
            yield f"{path}.authOptions.mode", f"is {at(spec, 'authOptions.mode')}"
        version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
        if not version or tuple(map(int, version.groups())) < OLDEST_RAY_WITH_TOKEN:
            yield f"{path}.rayVersion", f"is {spec.get('rayVersion')}; tokens came with 2.52"


def ray_inside(document: Object) -> Iterator[Fault]:
    """Ray's ports end at the cluster, and the client port, which runs code, is not told to anyone."""
    for path, spec in ray_specs(document):
        head = spec.get("headGroupSpec") or {}
        if head.get("serviceType", "ClusterIP") != "ClusterIP" or at(head, "headService.spec.type") not in (None, "ClusterIP"):
            yield f"{path}.headGroupSpec.serviceType", "is reached from outside"
        if head.get("enableIngress"):
            yield f"{path}.headGroupSpec.enableIngress", "is true"
    for pod in pods(document):
        for place, container in pod.containers():
            if any(port.get("containerPort") == CLIENT_PORT for port in container.get("ports") or []):
                yield f"{place}.ports", f"names Ray's client port {CLIENT_PORT}"


def head_without_gpu(document: Object) -> Iterator[Fault]:
    """A head coordinates: no GPU is reserved for it, and no task is placed on it."""
    for path, spec in ray_specs(document):
        head = spec.get("headGroupSpec") or {}
        if str(at(head, "rayStartParams.num-cpus")) != "0":
            yield f"{path}.headGroupSpec.rayStartParams.num-cpus", "is not 0"
        for container in at(head, "template.spec.containers") or []:
            if any("gpu" in name or "/mig-" in name for name in at(container, "resources.limits") or {}):
                yield f"{path}.headGroupSpec.template.spec.containers", "has a GPU"


def known_submitter(document: Object) -> Iterator[Fault]:
    """KubeRay's own submitter has no security context."""
    if document["kind"] != "RayJob":
        return
    mode = at(document, "spec.submissionMode") or "K8sJobMode"
    if mode == "SidecarMode" or (mode == "K8sJobMode" and not at(document, "spec.submitterPodTemplate")):
        yield "spec.submissionMode", f"is {mode}: the container that KubeRay adds has no security context"


def not_outside(document: Object) -> Iterator[Fault]:
    """Nothing is reached from outside by itself."""
    if document["kind"] in REACHED_KINDS:
        yield "kind", f"is {document['kind']}"
    if document["kind"] == "Service":
        if at(document, "spec.type") not in (None, "ClusterIP"):
            yield "spec.type", f"is {at(document, 'spec.type')}"
        if at(document, "spec.externalIPs"):
            yield "spec.externalIPs", "is set"


def limits_by_default(documents: list[Object]) -> Iterator[Fault]:
    """A container that says nothing gets limits from its namespace."""
    wanted = {"cpu", "memory", "ephemeral-storage"}
    for name in (at(document, "metadata.name") for document in documents if document["kind"] == "Namespace"):
        ranges = [d for d in documents if d["kind"] == "LimitRange" and at(d, "metadata.namespace") == name]
        told = [one for d in ranges for one in at(d, "spec.limits") or [] if one.get("type") == "Container"]
        for field in ("default", "defaultRequest"):
            if not any(wanted <= set(one.get(field) or {}) for one in told):
                yield f"Namespace {name}: {field}", "no LimitRange gives cpu, memory and ephemeral-storage"


def all_lifted(document: Object) -> Iterator[Fault]:
    """No pod hides in a kind that the rules do not know."""
    known = {id(pod.spec) for pod in pods(document)}
    for path, spec in _specs(document, ""):
        if id(spec) not in known:
            yield path, "is a pod that no rule looks at"


def _specs(tree: Any, path: str) -> Iterator[tuple[str, Object]]:
    if isinstance(tree, dict):
        if isinstance(tree.get("containers"), list) and all(
            isinstance(one, dict) and "image" in one for one in tree["containers"]
        ):
            yield path, tree
        for key, value in tree.items():
            yield from _specs(value, f"{path}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _specs(value, f"{path}[{number}]")


RULES = (
    Rule(
        "no-secret-object",
        "object",
        "manifests are kept in Git",
        "make the Secret by hand or by an operator; infra/README.md lists names and keys",
        no_secret_object,
    ),
    Rule(
        "restricted-namespace",
        "object",
        "admission is the last door: it sees pods that no file of ours describes",
        "label the namespace pod-security.kubernetes.io/enforce: restricted",
        restricted_namespace,
    ),
    Rule(
        "deadlines",
        "object",
        "work without an end holds its GPUs until a person looks",
        "set the deadline; see the reaper and the RayJob builder",
        deadlines,
    ),
    Rule(
        "queued",
        "object",
        "quotas hold only for what Kueue admits",
        "label it kueue.x-k8s.io/queue-name with a LocalQueue of its namespace",
        queued,
    ),
    Rule(
        "ray-token",
        "object",
        "Ray's Jobs API runs any code it is sent",
        "set authOptions: {mode: token} and rayVersion 2.52 or later",
        ray_token,
    ),
    Rule(
        "ray-inside",
        "object",
        "Ray's ports are made for friends",
        "leave serviceType at ClusterIP, no ingress, no port 10001",
        ray_inside,
    ),
    Rule(
        "head-without-gpu",
        "object",
        "a head with work or a GPU is a costly place to lose a job",
        'set num-cpus to "0" and ask for no GPU',
        head_without_gpu,
    ),
    Rule(
        "known-submitter",
        "object",
        "a restricted namespace refuses the pod, and the job never starts",
        "take HTTPMode, or K8sJobMode with a submitterPodTemplate",
        known_submitter,
    ),
    Rule(
        "not-outside",
        "object",
        "what is reached from outside needs TLS, names and a site's decision",
        "use ClusterIP; the site's gateway leads in",
        not_outside,
    ),
    Rule(
        "limits-by-default",
        "set",
        "operators add containers that no file of ours describes",
        "add a LimitRange with default and defaultRequest to the namespace",
        limits_by_default,
    ),
    Rule(
        "all-lifted",
        "object",
        "a rule that cannot see a pod cannot refuse it",
        "teach infra/policy/documents.py the kind",
        all_lifted,
    ),
)

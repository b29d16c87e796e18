"""What KubeRay 1.7 and Kueue 0.19 refuse in a RayJob, known before it is sent.

The API server checks the form of a RayJob; these rules are in code of the controllers (KubeRay's controllers/ray/utils/validation.go,
Kueue's RayJob webhook), which say no only after the job is accepted, in a status that a naive waiter takes for "not yet".

Each rule is a function from the RayJob to its complaints; `violations` collects them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from model.errors import ConfigError

MOST_NAME = 47
MOST_WORKER_GROUPS = 17
LEAST_RAY_FOR_TOKENS = (2, 52)
DNS_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")

Object = dict[str, Any]
Rule = Callable[[Object], Iterator[str]]


def violations(job: Object) -> list[str]:
    """What KubeRay or Kueue would refuse in the RayJob `job`, all at once."""
    return [complaint for rule in (*KUBERAY, *KUEUE) for complaint in rule(job)]


def check(job: Object) -> None:
    """ConfigError if KubeRay or Kueue would refuse `job`."""
    if found := violations(job):
        more = f" (and {len(found) - 1} more: {'; '.join(found[1:])})" if len(found) > 1 else ""
        name = str(job.get("metadata", {}).get("name"))[:80]
        raise ConfigError(f"RayJob {name}: {found[0]}{more}", "KubeRay or Kueue would not run it; mend the recipe or the pool")


def groups(job: Object) -> list[tuple[str, Object]]:
    """Head and worker groups, with their names."""
    cluster = job["spec"].get("rayClusterSpec") or {}
    workers = cluster.get("workerGroupSpecs") or []
    return [("head", cluster.get("headGroupSpec") or {}), *((str(g.get("groupName")), g) for g in workers)]


def _name(job: Object) -> Iterator[str]:
    name = job["metadata"].get("name", "")
    if len(name) > MOST_NAME:
        yield f"its name has {len(name)} characters, {MOST_NAME} are allowed"
    if not DNS_1035.match(name):
        yield f"its name {name[:80]!r} is no DNS-1035 label (a-z, 0-9, -, beginning with a letter)"


def _labels(job: Object) -> Iterator[str]:
    templates = [(f"{name} template", g.get("template", {}).get("metadata", {}).get("labels", {})) for name, g in groups(job)]
    ray = [(f"{name} group", g.get("labels", {})) for name, g in groups(job)]
    for where, labels in [("RayJob", job["metadata"].get("labels", {})), *templates, *ray]:
        for key, value in labels.items():
            if not LABEL_KEY.match(key) or not LABEL_VALUE.match(value):
                yield f"{where}: {key}={value[:80]!r} is no label"


def _cluster(job: Object) -> Iterator[str]:
    spec = job["spec"]
    selector = spec.get("clusterSelector")
    if selector:
        if not selector.get("ray.io/cluster"):
            yield "clusterSelector names no cluster (ray.io/cluster)"
        if spec.get("suspend"):
            yield "a job with clusterSelector cannot be suspended"
        if spec.get("backoffLimit", 0) > 0:
            yield "a job with clusterSelector cannot have a backoffLimit"
    elif not spec.get("rayClusterSpec"):
        yield "neither rayClusterSpec nor clusterSelector"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "a job that can be suspended needs shutdownAfterJobFinishes"


def _submission(job: Object) -> Iterator[str]:
    spec = job["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"submissionMode {mode!r} is not known"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode cannot have a backoffLimit"
    if mode != "SidecarMode":
        return
    yield from (
        f"SidecarMode does not take {field}"
        for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector")
        if spec.get(field)
    )
    restart = dict(groups(job))["head"].get("template", {}).get("spec", {}).get("restartPolicy", "Never")
    if restart != "Never":
        yield f"SidecarMode needs the head's restartPolicy Never, not {restart}"


def _deletion(job: Object) -> Iterator[str]:
    spec = job["spec"]
    ttl, strategy = spec.get("ttlSecondsAfterFinished", 0), spec.get("deletionStrategy") or {}
    if ttl < 0:
        yield f"ttlSecondsAfterFinished is {ttl}"
    if ttl > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if strategy.get("deletionRules") and (
        spec.get("shutdownAfterJobFinishes") or ttl or {"onSuccess", "onFailure"} & set(strategy)
    ):
        yield "deletionRules exclude shutdownAfterJobFinishes, ttlSecondsAfterFinished and onSuccess/onFailure"


def _limits(job: Object) -> Iterator[str]:
    spec = job["spec"]
    for field, least in (("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1), ("backoffLimit", 0)):
        if spec.get(field, least) < least:
            yield f"{field} is {spec[field]}, at least {least} is needed"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is not YAML"


def _authentication(job: Object) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec") or {}
    options = cluster.get("authOptions") or {}
    if options.get("enableK8sTokenAuth"):
        yield "a RayJob cannot use Kubernetes tokens (enableK8sTokenAuth)"
    if options.get("mode") == "token":
        version = re.match(r"^(\d+)\.(\d+)", cluster.get("rayVersion", ""))
        if not version or (int(version[1]), int(version[2])) < LEAST_RAY_FOR_TOKENS:
            yield f"token authentication needs rayVersion 2.52 or later, not {cluster.get('rayVersion')!r}"


def _group(job: Object) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec") or {}
    for name, group in groups(job) if cluster else []:
        started = group.get("rayStartParams", {})
        if not group.get("template", {}).get("spec", {}).get("containers"):
            yield f"group {name} has no container"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(started):
            yield f"group {name} says its resources twice, in rayStartParams and in resources"
        if "labels" in started:
            yield f"group {name} has labels in rayStartParams; KubeRay takes them from `labels`"
    if cluster.get("enableInTreeAutoscaling"):
        return
    for name, group in groups(job)[1:] if cluster else []:
        if group.get("minReplicas") is None or group.get("maxReplicas") is None:
            yield f"group {name} needs minReplicas and maxReplicas"
        elif not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            yield f"group {name} has {group.get('replicas', 0)} replicas, outside {group['minReplicas']}..{group['maxReplicas']}"


def _kueue(job: Object) -> Iterator[str]:
    spec, metadata = job["spec"], job["metadata"]
    if spec.get("clusterSelector"):
        yield "Kueue does not see a job on an existing cluster: it would run past all quotas"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue needs shutdownAfterJobFinishes"
    cluster = spec.get("rayClusterSpec") or {}
    if (count := len(cluster.get("workerGroupSpecs") or [])) > MOST_WORKER_GROUPS:
        yield f"{count} worker groups, Kueue takes {MOST_WORKER_GROUPS}"
    if cluster.get("enableInTreeAutoscaling") and metadata.get("annotations", {}).get(ELASTIC) != "true":
        yield f"autoscaling under Kueue needs the annotation {ELASTIC}"
    for name, group in groups(job):
        if QUEUE in group.get("template", {}).get("metadata", {}).get("labels", {}):
            yield f"the label {QUEUE} belongs on the RayJob alone, not on pods of {name}: Kueue would queue them twice"
    if not metadata.get("labels", {}).get(QUEUE):
        yield f"no label {QUEUE}: it would run past all quotas"
    names = [name for name, _ in groups(job)]
    yield from (
        f"group name {name!r} stands twice ('head' is the head's)" for name in sorted({n for n in names if names.count(n) > 1})
    )


def _quantities(job: Object) -> Iterator[str]:
    """Ray reads limits, Kueue counts requests: they must be equal."""
    for name, group in groups(job):
        for container in group.get("template", {}).get("spec", {}).get("containers", []):
            sizes = container.get("resources", {})
            if not sizes.get("requests") or sizes.get("requests") != sizes.get("limits"):
                yield f"group {name}: requests and limits of {container.get('name')} are not equal"


KUBERAY: tuple[Rule, ...] = (_name, _labels, _cluster, _submission, _deletion, _limits, _authentication, _group)
KUEUE: tuple[Rule, ...] = (_kueue, _quantities)

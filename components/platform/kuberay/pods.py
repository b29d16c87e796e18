"""The pod templates of a RayJob: head and workers, under the restricted Pod Security profile with a read-only root.

1. Both have one container, the train image, as user 10001. What it writes goes to emptyDirs: /tmp (Ray's sockets and logs), /scratch
   (biovlm's home) and /dev/shm (Ray's object store, in memory).
2. Requests equal limits: Ray reads the limits, Kueue counts the requests.
3. The head has no GPU and takes no work (`num-cpus: 0`): it holds the driver alone.
4. A worker that shall go gets SIGTERM through a preStop hook (`kuberay/prestop.py`): KubeRay deletes a preempted cluster without
   stopping its job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from components.platform.kuberay.site import SECRET, Site
from components.platform.pools import Layout, Pool
from model.errors import ConfigError

USER = 10001
SCRATCH = "/scratch"
NO_GPU = {
    "name": "NVIDIA_VISIBLE_DEVICES",
    "value": "void",
}  # without a limit a node's runtime shows all its GPUs (KubeRay's issue 2098)
HEAD_SHM_GIB = 1
TMP_GIB = 10


def head(site: Site, labels: Mapping[str, str], env: list[dict[str, Any]]) -> dict[str, Any]:
    """The headGroupSpec."""
    size = _size(site.head_cpus, site.head_memory_gib + HEAD_SHM_GIB)
    template = _template(site, labels, "ray-head", size, HEAD_SHM_GIB, [*env, NO_GPU])
    template["spec"]["restartPolicy"] = "Never"
    template["spec"]["containers"][0]["ports"] = [
        {"containerPort": 6379, "name": "gcs-server"},
        {"containerPort": 8265, "name": "dashboard"},
    ]
    return {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": template}


def workers(
    site: Site,
    name: str,
    pool: Pool,
    layout: Layout,
    cpus: float,
    memory_gib: float,
    labels: Mapping[str, str],
    env: list[dict[str, Any]],
) -> dict[str, Any]:
    """The workerGroupSpec of all workers of a job.

    Args:
        site: The cluster.
        name: The pool's name; also the group's.
        pool: Where the pods go.
        layout: Number of pods, and of workers in each.
        cpus: CPUs of one worker.
        memory_gib: Memory of one worker.
        labels: Of the pods.
        env: Environment of the container.
    """
    each, shm = layout.workers_per_pod, math.ceil(pool.shared_memory_gib)
    size = _size(math.ceil(cpus * each), math.ceil(memory_gib * each) + shm)
    if layout.gpus_per_pod and pool.accelerator:
        size[pool.accelerator] = str(layout.gpus_per_pod)
    watch = [{"name": "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "value": "1"}] if pool.spot else []
    template = _template(site, labels, "ray-worker", size, shm, [*env, *watch, *([] if layout.gpus_per_pod else [NO_GPU])])
    spec = template["spec"]
    spec["restartPolicy"] = "Never"
    spec["terminationGracePeriodSeconds"] = pool.grace_seconds
    stop = ["python", "-m", "components.platform.kuberay.prestop", str(max(1, pool.grace_seconds - 5))]
    spec["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": stop}}}
    if pool.node_selector:
        spec["nodeSelector"] = dict(pool.node_selector)
    if pool.tolerations:
        spec["tolerations"] = [t.model_dump(exclude_none=True) for t in pool.tolerations]
    if pool.topology:
        kind = "required" if pool.topology.required else "preferred"
        template["metadata"]["annotations"] = {f"kueue.x-k8s.io/podset-{kind}-topology": pool.topology.level}
    _pass_on(spec, site.passed_on)
    known = {"biovlm.io/pool": name, "biovlm.io/accelerator": pool.ray_accelerator}
    return {
        "groupName": name,
        "replicas": layout.pods,
        "minReplicas": layout.pods,
        "maxReplicas": layout.pods,
        "rayStartParams": {"num-gpus": str(layout.gpus_per_pod)},
        "labels": {key: value for key, value in known.items() if value},
        "template": template,
    }


def _pass_on(spec: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Add to a worker's pod what KFP passed on to it. Sizes are the recipe's; what the pod has already, it keeps.

    Raises:
        ConfigError: A variable looks like a secret and has its value with it.
    """
    container = spec["containers"][0]
    for part, where in (("tolerations", spec), ("volumes", spec)):
        known = where.get(part, [])
        if fresh := [entry for entry in given.get(part, ()) if entry not in known]:
            where[part] = [*known, *fresh]
    if given.get("node_selector"):
        spec["nodeSelector"] = {**given["node_selector"], **spec.get("nodeSelector", {})}
    if given.get("affinity"):
        spec["affinity"] = given["affinity"]
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    container["volumeMounts"] += [mount for mount in given.get("volume_mounts", ()) if mount["mountPath"] not in paths]
    names = {variable["name"] for variable in container["env"]}
    for variable in given.get("env", ()):
        if variable["name"] in names or "fieldRef" in variable.get("valueFrom", {}):  # the launcher's own name and address
            continue
        if variable.get("value") and SECRET.search(variable["name"]) and not variable["name"].endswith("_PATH"):
            raise ConfigError(
                f"the task passes on {variable['name']}, which looks like a secret, with its value; it would stand in the RayJob",
                "name the Secret (kubernetes.use_secret_as_env), not its value",
            )
        container["env"].append(variable)


def _size(cpus: int, memory_gib: int) -> dict[str, str]:
    """Disk is bounded by the volumes' limits: a resource that a queue does not hold, as disk rarely is, is never admitted by Kueue."""
    return {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}


def _template(
    site: Site, labels: Mapping[str, str], container: str, size: Mapping[str, str], shm_gib: int, env: list[dict[str, Any]]
) -> dict[str, Any]:
    """A pod template with one container that keeps the restricted profile."""
    mounts = {"tmp": "/tmp", "scratch": SCRATCH, "shm": "/dev/shm"}
    return {
        "metadata": {"labels": dict(labels)},
        "spec": {
            "serviceAccountName": site.service_account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": container,
                    "image": site.image,
                    "imagePullPolicy": "IfNotPresent",
                    "env": [dict(variable) for variable in env],
                    "envFrom": [{"secretRef": {"name": secret}} for secret in site.secrets],
                    "resources": {"requests": dict(size), "limits": dict(size)},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "runAsNonRoot": True,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": f"{TMP_GIB}Gi"}},
                {"name": "scratch", "emptyDir": {"sizeLimit": f"{site.scratch_gib}Gi"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
            ],
        },
    }

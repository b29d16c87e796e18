"""What the pods of the steps need on a cluster; none of it is seen by a run on this machine.

1. `dress` gives each task its environment, secrets by name, retries, deadline and security context. Keys go to the steps that need them.
2. Where a service is, a ConfigMap of the namespace says (`SETTINGS`), so that one package serves every cluster. What an address may not
   be trusted with, a Secret says. The package itself holds neither.
3. The steps that launch heavy work pass GPU, CPU, memory and the pool's place on to the Ray workers (KFP's TaskConfig): their own pods only
   wait. How much that is, preflight reads from the recipe while the run is under way.

KFP can set user and group of a container and no more; it drops all capabilities and privilege escalation by itself. What else the
namespace demands of a pod (a read-only root, limits for pods without any) is a policy of the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from components.platform.retries import MOST_ATTEMPTS

SETTINGS = "biovlm"
"""ConfigMap with the addresses of a cluster, under the names of the environment variables."""
NEEDED = ("BIOVLM_STORE", "MLFLOW_TRACKING_URI")
OPTIONAL = (
    "BIOVLM_CHECKPOINTS",
    "BIOVLM_COST_CENTRE",
    "BIOVLM_DATA",
    "BIOVLM_FEATURE_CACHE_GIB",
    "BIOVLM_LAUNCHER",
    "BIOVLM_LEDGER",
    "BIOVLM_POOLS",
    "BIOVLM_RAY_ADDRESS",
    "BIOVLM_RAY_ENVIRONMENT",
    "BIOVLM_RAY_SECRETS",
    "BIOVLM_RAY_SUBMISSION",
    "BIOVLM_SIGNING",
    "BIOVLM_TEAM",
    "MLFLOW_EXPERIMENT_NAME",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
)
SECRETS = {
    "biovlm-store": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "biovlm-tracking": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
"""Secret -> its keys, which are also the names of the variables. Optional: a pod may have a role of its own instead."""
SIGNING, TRUSTED = "biovlm-signing", "biovlm-trusted-keys"
KEYS = {
    "preflight": {SIGNING: {"signing.pub": "BIOVLM_SIGNER_PEM"}},
    "evaluate": {SIGNING: {"signing.pem": "BIOVLM_SIGNING_KEY_PEM"}},
    "champion": {SIGNING: {"signing.pem": "BIOVLM_SIGNING_KEY_PEM"}},
    "register": {SIGNING: {"signing.pem": "BIOVLM_SIGNING_KEY_PEM"}},
    "promote": {},
}
"""Step -> what of the signing key it gets. Those that sign get the private key, and preflight its public half, so that it can say before
any GPU is asked for whether signatures of this cluster will be believed. All of them verify, with the keys in `TRUSTED`."""
POD = {
    "BIOVLM_POD_NAME": "metadata.name",
    "BIOVLM_POD_UID": "metadata.uid",
    "BIOVLM_NAMESPACE": "metadata.namespace",
    "BIOVLM_KFP_RUN_ID": "metadata.labels['pipeline/runid']",
}
"""From the downward API: who owns the Ray job, where it goes, and which run it is of. The run's id is a label of every pod of KFP's; its
placeholder is filled in for arguments alone, and would arrive in a variable as it stands."""
USER = 10001
HOUR = 3600
DEADLINES = {
    "preflight": HOUR // 2,
    "data": 24 * HOUR,
    "align": 14 * 24 * HOUR,
    "instruct": 14 * 24 * HOUR,
    "task": 14 * 24 * HOUR,
    "evaluate": 14 * 24 * HOUR,
    "champion": 14 * 24 * HOUR,
    "register": 4 * HOUR,
    "promote": HOUR // 2,
}
"""Seconds that a step's own pod may live. For heavy steps that includes the time in a queue; the Ray job has a deadline of its own."""
HEAVY = ("align", "instruct", "task", "evaluate", "champion")
RETRIES = MOST_ATTEMPTS - 1
"""How often the pod of a heavy step is started again: a pod that only waits may be lost with its node. It finds the Ray job of the attempt
before, and work that begins anew is counted with all other attempts (components/platform/retries.py). Other steps are tried once: what
fails in them fails again, and `biovlm retry` goes on from there."""


@dataclass(frozen=True)
class Images:
    """What runs. On a cluster by digest; the names without one only serve a run on this machine."""

    launcher: str = "biovlm-launcher-python"
    train: str = "biovlm-train"


def dress(name: str, task: dsl.PipelineTask, images: Images, asks: dict[str, Any]) -> None:
    """Say what the pod of a step needs.

    Args:
        name: Name of the step.
        task: Its task.
        images: What runs.
        asks: For heavy steps: what preflight read from the recipe, by name of `components.platform.task_config.Asks`.
    """
    task.set_container_image(images.launcher)
    task.set_env_variable("BIOVLM_LAUNCHER_IMAGE", images.launcher)
    task.set_env_variable("BIOVLM_TRAIN_IMAGE", images.train)
    kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in NEEDED})
    kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in OPTIONAL}, optional=True)
    for secret, keys in SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    if name in KEYS:
        _keys(task, KEYS[name])
    for variable, path in POD.items():
        kubernetes.use_field_path_as_env(task, variable, path)
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "biovlm")
    kubernetes.add_pod_label(task, "biovlm.io/step", name)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_timeout(task, DEADLINES[name])
    if name in HEAVY:
        _pass_on(task, asks)
        task.set_retry(num_retries=RETRIES, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")


def _keys(task: dsl.PipelineTask, own: Mapping[str, dict[str, str]]) -> None:
    """As variables, not as mounted files: KFP gives a file no owner and mode, and those of a heavy step to its workers. The door makes
    files of them (components/platform/door.py). Optional: without them a pod would wait for its deadline, and preflight says so at once."""
    for secret, keys in {TRUSTED: {"trusted.pem": "BIOVLM_TRUSTED_KEYS_PEM"}, **own}.items():
        kubernetes.use_secret_as_env(task, secret, keys, optional=True)


def _pass_on(task: dsl.PipelineTask, asks: dict[str, Any]) -> None:
    """What the Ray workers ask for. The component lets it through to them, and none of it reaches its own pod."""
    task.set_cpu_limit(asks["cpu"]).set_memory_limit(asks["memory"])
    task.set_accelerator_type(asks["accelerator"]).set_accelerator_limit(asks["gpus"])
    kubernetes.add_node_selector_json(task, asks["node_selector"])
    kubernetes.add_toleration_json(task, asks["tolerations"])

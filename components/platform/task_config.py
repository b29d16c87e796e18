"""What a Ray worker asks for, and its way from the recipe through KFP to the Ray job.

1. Preflight reads it from the recipe (`asked`) and hands it out; the pipeline sets it on the tasks of the heavy steps.
2. KFP passes it on to the component instead of applying it to the component's own pod (TaskConfig). What a platform team sets on a task
   besides (volumes, an affinity) comes the same way. So does the environment, and in it what the launcher's own pod reads from Secrets.
3. The component's door calls `keep`, which leaves those out: a Ray pod has Secrets of its own. Whoever builds the Ray job reads the rest
   with `kept`: fragments of a pod, as Kubernetes writes them.

On this machine nobody sets anything, and `kept` is empty.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from components.platform.pools import Pool
from model.config import Resources
from model.errors import ConfigError

VARIABLE = "BIOVLM_TASK_CONFIG"
NVIDIA = "nvidia.com/gpu"
LAUNCHERS_OWN = ("biovlm-store", "biovlm-tracking", "biovlm-signing", "biovlm-trusted-keys")
"""Secrets of the steps' own pods. The code of a model or data set that runs in a worker must not sign, register, or write where the
launcher may (infra/README.md: who reads which)."""
PARTS = ("resources", "tolerations", "node_selector", "affinity", "env", "volumes", "volume_mounts")


class Asks(NamedTuple):
    """What one worker asks for, in the words of Kubernetes. Texts, because KFP turns the integers of its own structs to floats."""

    cpu: str
    memory: str
    accelerator: str
    gpus: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]


def asked(resources: Resources, pool: Pool) -> Asks:
    """What a worker with `resources`, taken from `pool`, asks for."""
    return Asks(
        cpu=f"{round(resources.cpus_per_worker * 1000)}m",
        memory=f"{round(resources.memory_gib * 1024)}Mi",
        accelerator=pool.accelerator or NVIDIA,
        gpus=str(resources.gpus_per_worker),
        node_selector=dict(pool.node_selector),
        tolerations=[entry.model_dump(exclude_none=True) for entry in pool.tolerations],
    )


def keep(task_config: object) -> None:
    """Remember, for this process and its children, what KFP passed on; nothing where it passed on nothing."""
    found = dataclasses.asdict(task_config) if dataclasses.is_dataclass(task_config) else {}  # type: ignore[arg-type]  # an instance
    found = _for_workers(found)
    given = {name: found[name] for name in PARTS if found.get(name)}
    if given:
        os.environ[VARIABLE] = json.dumps(given, sort_keys=True)


def _for_workers(found: dict[str, Any]) -> dict[str, Any]:
    """What was passed on, without the launcher's own Secrets."""
    hidden = {volume["name"] for volume in found.get("volumes") or () if _own(volume.get("secret", {}).get("secretName"))}
    wanted = {
        "env": [one for one in found.get("env") or () if not _own(_named(one))],
        "volumes": [one for one in found.get("volumes") or () if one["name"] not in hidden],
        "volume_mounts": [one for one in found.get("volume_mounts") or () if one["name"] not in hidden],
    }
    return {**found, **wanted}


def _named(variable: Mapping[str, Any]) -> str | None:
    """The Secret that a variable is read from."""
    name = ((variable.get("valueFrom") or {}).get("secretKeyRef") or {}).get("name")
    return None if name is None else str(name)


def _own(secret: str | None) -> bool:
    return secret in LAUNCHERS_OWN


def kept(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Fragments of the worker's pod, by the names of `PARTS`. ConfigError if they cannot be read."""
    text = (os.environ if environment is None else environment).get(VARIABLE, "")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{VARIABLE} holds no JSON object", "it is written by the pipeline's own steps: unset it")
    return found

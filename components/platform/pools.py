"""Pools of machines for heavy steps: what a pool's nodes are like, how to reach them, what they cost.

1. `load` reads `pools.yaml` beside this file, or the site's own (BIOVLM_POOLS), strictly: an unknown key is an error with the nearest
   known one.
2. `choose` finds the pool that a recipe names.
3. `layout` cuts the recipe's workers into pods of that pool, and refuses what the pool cannot do; `check` asks that before any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from model.config import Resources
from model.config.choices import Name, Strict
from model.errors import ConfigError
from model.recipe import nearest, strict_letter

BUILT_IN = Path(__file__).with_name("pools.yaml")
WITHOUT_GPU = "cpu"
QualifiedName = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]


class Toleration(Strict):
    """A taint of the nodes that the pods may stand."""

    key: QualifiedName
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Topology(Strict):
    """How near each other Kueue places the pods of a job."""

    level: QualifiedName
    """Node label whose value the pods shall share."""
    required: bool = False
    """Whether the job rather waits than be spread."""


class Pool(Strict):
    """One kind of node behind one queue."""

    accelerator: QualifiedName | None = None
    """Resource name of a GPU, or of a slice of one; empty for a pool without."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)]
    max_gpus: Annotated[int, Field(ge=1)] | None = None
    """All GPUs that the queue can ever give to one job; asked where the queue itself may not be read. Empty: not known."""
    ray_accelerator: LabelValue = ""
    """Ray's name of the accelerator; a label of the pool's Ray nodes."""
    gpu_memory_gib: Annotated[float, Field(ge=0)] = 0.0
    """Memory of one GPU or slice."""
    mig: bool = False
    """Slices: for evaluation or a single worker only, since a process sees one slice."""
    spot: bool = False
    """Nodes are taken away with short notice; Ray then looks out for the notice."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    topology: Topology | None = None
    shared_memory_gib: Annotated[float, Field(gt=0)] = 8.0
    """Size of /dev/shm in a pod; counts as the pod's memory."""
    grace_seconds: Annotated[int, Field(ge=5, le=3600)] = 120
    """Time between a pod's SIGTERM and its end."""
    queue: Name
    """Kueue LocalQueue in the namespace."""
    priority: Name
    """Kueue WorkloadPriorityClass."""
    usd_per_gpu_hour: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _whole(self) -> Pool:
        if (self.accelerator is None) != (self.gpus_per_node == 0):
            raise ValueError("a pool has both `accelerator` and `gpus_per_node`, or is one without GPUs")
        if self.mig and not (self.accelerator or "").startswith("nvidia.com/mig-"):
            raise ValueError(f"a pool with `mig` names a slice, nvidia.com/mig-..., not {self.accelerator}")
        return self


@dataclass(frozen=True)
class Layout:
    """A job's worker pods, all alike."""

    pods: int
    workers_per_pod: int
    gpus_per_pod: int


def load(path: Path | None = None) -> dict[str, Pool]:
    """The pools in the file at `path`, or biovlm's own. ConfigError: unreadable, or an unknown key or wrong value in it."""
    path = path or BUILT_IN
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[Name, Pool]).validate_python(raw)
    except OSError as error:
        raise ConfigError(f"cannot read the pools in {path}: {error.strerror}", "check BIOVLM_POOLS") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}", "mend the file") from None
    except ValidationError as error:
        raise ConfigError(*strict_letter(error, path, _known, "components/platform/pools.py")) from None


def choose(pools: Mapping[str, Pool], name: str | None) -> tuple[str, Pool]:
    """The pool of that name with its name; `cpu` for None. ConfigError if there is none."""
    name = name or WITHOUT_GPU
    if name not in pools:
        raise ConfigError(
            f"resources.pool: there is no pool {name!r}{nearest(name, list(pools))}",
            f"pools here: {', '.join(sorted(pools)) or 'none'}",
        )
    return name, pools[name]


def check(name: str, pool: Pool, wanted: Resources) -> None:
    """ConfigError if training could never stand in the pool: what `layout` refuses, or more GPUs than the pool has."""
    layout(name, pool, wanted)
    gpus = wanted.workers * wanted.gpus_per_worker
    if pool.max_gpus is not None and gpus > pool.max_gpus:
        raise ConfigError(
            f"resources.pool: {gpus} GPUs are asked for, {name} has {pool.max_gpus}, so its queue could never admit this",
            "take fewer workers, or another pool",
        )


def layout(name: str, pool: Pool, wanted: Resources, evaluates: bool = False) -> Layout:
    """How the workers stand in pods: as many in each as divide evenly and a node has GPUs for.

    Args:
        name: The pool's name.
        pool: The pool.
        wanted: Number and size of the workers.
        evaluates: They evaluate, and may do that on slices.

    Raises:
        ConfigError: GPUs asked of a pool without, none asked of a pool with, or several training workers on slices.
    """
    if bool(wanted.gpus_per_worker) != bool(pool.gpus_per_node):
        has = f"has {pool.gpus_per_node} GPUs on each node" if pool.gpus_per_node else "has no GPUs"
        raise ConfigError(
            f"resources.pool: {name} {has}, resources.gpus_per_worker is {wanted.gpus_per_worker}",
            "take another pool, or set resources.gpus_per_worker to 1 where the pool has GPUs and to 0 where not",
        )
    if pool.mig and wanted.workers > 1 and not evaluates:
        raise ConfigError(
            f"resources.pool: {name} is made of GPU slices (MIG), resources.workers is {wanted.workers}; slices cannot train together",
            "set resources.workers=1, or take a pool of whole GPUs",
        )
    most = 1 if pool.mig else max(1, pool.gpus_per_node)
    each = max(n for n in range(1, most + 1) if wanted.workers % n == 0)
    return Layout(wanted.workers // each, each, each * wanted.gpus_per_worker)


def cost_usd(pool: Pool, gpus: int, hours: float) -> float:
    """What that many GPUs of the pool cost."""
    return pool.usd_per_gpu_hour * gpus * hours


def _known(location: tuple[int | str, ...]) -> list[str]:
    part: dict[str, type[Strict]] = {"tolerations": Toleration, "topology": Topology}
    return list(part.get(str(location[1]) if len(location) > 1 else "", Pool).model_fields)

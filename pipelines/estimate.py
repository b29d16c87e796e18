"""What a recipe is thought to cost, in GPU hours, against its budget and its deadlines; before anything is asked of a cluster.

1. `counts` reads from the data registry how many records each stage sees.
2. `estimate` multiplies: records x epochs x tokens of the context (no record is longer) x 6 operations for each weight and token, over
   what a GPU of the pool does in a second at the share of its peak that fine-tuning reaches. An upper estimate within a factor of a few,
   which is what a budget needs to catch a wrong recipe.
3. `refuse` compares. Where the registry or a base model's config is not at hand, nothing is refused and the reader is told.

Rates are the makers' dense bfloat16 figures; the share is on the low side of what fine-tuning with LoRA reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.data.registry import Registry
from components.platform import pools
from components.platform.settings import Settings
from model.config import STAGE_NAMES, Recipe
from model.errors import BiovlmError, ConfigError, RefusedError
from model.training.memory import Shapes, shapes_of
from pipelines import output
from pipelines.plan_memory import config_of

PEAK_TFLOPS = {"A100-80G": 312.0, "H100": 989.0, "L4": 121.0}
SHARE = 0.2
OPERATIONS = 6.0
"""For each weight and token, forward and backward."""
UNKNOWN_TFLOPS = 100.0
"""Of a pool whose accelerator is not in the table."""


@dataclass(frozen=True)
class Estimate:
    """What the stages of a recipe cost."""

    gpu_hours: Mapping[str, float]
    """Stage -> GPU hours over all its workers."""

    @property
    def total(self) -> float:
        """Of all stages."""
        return sum(self.gpu_hours.values())


def estimate(recipe: Recipe, records: Mapping[str, float], shapes: Shapes, tflops: float) -> Estimate:
    """The cost of a recipe.

    Args:
        recipe: The recipe.
        records: Stage -> records of an epoch, weights of the mixture applied.
        shapes: Of its base models.
        tflops: Peak of one GPU.
    """
    rate = tflops * 1e12 * SHARE * 3600
    hours = {}
    for stage in STAGE_NAMES:
        tokens = records[stage] * getattr(recipe.stages, stage).epochs * recipe.model.context_tokens
        hours[stage] = OPERATIONS * weights(shapes) * tokens / rate if recipe.resources.gpus_per_worker else 0.0
    return Estimate(hours)


def weights(shapes: Shapes) -> int:
    """Values that a token passes, the vision tower's counted as if each did."""
    return shapes.blocks * shapes.block_values + shapes.vocabulary * shapes.width + shapes.tower_values


def judge(recipe: Recipe, found: Estimate, budget: float | None) -> BiovlmError | None:
    """Why the recipe is not to be run; None if it may."""
    wanted = recipe.resources
    gpus = max(1, wanted.workers * wanted.gpus_per_worker)
    stage = max(found.gpu_hours, key=lambda name: found.gpu_hours[name])
    longest = found.gpu_hours[stage] / gpus
    if longest > wanted.deadline_hours:
        return ConfigError(
            f"the stage {stage} is thought to take {longest:,.1f} h on {gpus} GPUs, resources.deadline_hours is {wanted.deadline_hours:g}",
            "set a later deadline, take more workers, or fewer epochs",
        )
    if budget is not None and found.total > budget:
        return RefusedError(
            f"the run is thought to cost {found.total:,.1f} GPU hours, the budget is {budget:g}",
            "raise the budget, or take fewer epochs or records; what is reused costs nothing, and is not subtracted here",
        )
    return None


def refuse(recipe: Recipe, budget: float | None, settings: Settings) -> None:
    """Raise the letter of `judge`, or of a pool that there is not or that could never hold it; say so where nothing can be known."""
    name, pool = pools.choose(pools.load(settings.pools), recipe.resources.pool)
    if recipe.resources.pool is not None:  # without one, a standing Ray cluster may have the GPUs
        pools.check(name, pool, recipe.resources)
    if not recipe.resources.gpus_per_worker:
        return
    found = of(recipe, settings)
    if found is None:
        output.say("note: the cost is not known: the data registry or a base model's config is not on this machine")
        return
    error = judge(recipe, found, budget)
    if error is not None:
        raise error


def of(recipe: Recipe, settings: Settings) -> Estimate | None:
    """The estimate with what this machine knows, on GPUs of the recipe's pool; None if that is too little. ConfigError: no such pool."""
    _, pool = pools.choose(pools.load(settings.pools), recipe.resources.pool)
    tflops = PEAK_TFLOPS.get(pool.ray_accelerator, UNKNOWN_TFLOPS)
    try:
        records = counts(recipe, Registry(settings.home))
        configs = [config_of(source, None, settings.store) for source in (recipe.model.language, recipe.model.tower)]
        if configs[0] is None or configs[1] is None:
            return None
        return estimate(recipe, records, shapes_of(configs[0], configs[1]), tflops)
    except BiovlmError:
        return None  # no registry here, or a set that it has not got: the run itself says so


def counts(recipe: Recipe, registry: Registry) -> dict[str, float]:
    """Stage -> records of an epoch. Errors as `Registry.version`."""
    facts = {name: registry.version(name, entry.revision).facts for name, entry in recipe.data.sets.items()}
    return {stage: sum(_records(facts, mix) for mix in getattr(recipe.stages, stage).data) for stage in STAGE_NAMES}


def _records(facts: Mapping[str, Mapping[str, Any]], mix: Any) -> float:
    by_kind = facts[mix.set].get("splits", {}).get(mix.split, {}).get("by_kind", {})
    return float(mix.weight * sum(count for kind, count in by_kind.items() if not mix.kinds or kind in mix.kinds))

"""What a plan says about the memory of a training stage.

1. `config_of` finds the `config.json` of both base models: inline in the recipe, in a folder, or in the store, where the data step
   brought it. Where one is not there yet, the stage decides when it starts.
2. `explain` asks `model.training.memory`, which the stage itself asks, and says what came out.

On a GPU the budget is its free memory, which only the worker knows: planned is with all the memory that a GPU of the pool has. Where the
pool does not say how much that is, both ends are said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.platform.reference import Reference
from model import manifest
from model.config import Memory, ModelSource, TrainSlice
from model.errors import ConfigError
from model.recipe import REGISTRY_PREFIX
from model.training import memory

LATER = "decided when the stage starts: a base model is not on this machine yet"


@dataclass(frozen=True)
class PlannedMemory:
    """What a stage would keep and compute again; bytes of one worker."""

    text: str
    recomputed: int | None = None
    """Blocks of the language model that are computed again; empty where that is not known yet."""
    blocks: int | None = None
    needed_bytes: int | None = None
    kept_bytes: int | None = None
    """If everything were kept."""
    budget_bytes: int | None = None


def explain(piece: TrainSlice, material: Reference | None, store: Path, gpu_memory_gib: float) -> PlannedMemory:
    """The memory of a stage; `material` is the data artifact, if there is one; `gpu_memory_gib` is 0 where the pool does not say it."""
    found = [config_of(source, material, store) for source in (piece.model.language, piece.model.tower)]
    language, tower = found
    if language is None or tower is None:
        return PlannedMemory(LATER)
    try:
        shapes, resources = memory.shapes_of(language, tower), piece.resources
        if resources.gpus_per_worker and not gpu_memory_gib:
            return _on_gpu(memory.estimate(shapes, piece.model, piece.stage, resources), piece.stage.memory)
        budget = gpu_memory_gib if resources.gpus_per_worker else resources.memory_gib
        choice = memory.choose(shapes, piece.model, piece.stage, resources, int(budget * 2**30))
    except ConfigError as error:
        return PlannedMemory(f"would be refused: {error.message}; {error.hint}")
    return PlannedMemory(
        str(choice), choice.recomputed, choice.blocks, choice.needed_bytes, choice.kept_bytes, choice.budget_bytes
    )


def _on_gpu(found: memory.Estimate, wanted: Memory) -> PlannedMemory:
    whole, least = found.total(0), found.total(found.blocks)
    text = f"about {memory.gib(whole)} with everything kept, {memory.gib(least)} with all {found.blocks} blocks computed again"
    decided = {Memory.KEEP: 0, Memory.RECOMPUTE: found.blocks}.get(wanted)
    if decided is None:
        return PlannedMemory(f"{text}; the GPU's free memory decides", None, found.blocks, least, whole)
    return PlannedMemory(f"{text}; the recipe says {wanted}", decided, found.blocks, found.total(decided), whole)


def config_of(source: ModelSource, material: Reference | None, store: Path) -> Mapping[str, Any] | None:
    """The `config.json` of a base model; None where it is not at hand."""
    if source.config is not None:
        return source.config
    name = source.source or ""
    if name.startswith(REGISTRY_PREFIX):
        facts = {} if material is None else material.facts.get("bases", {}).get(name.removeprefix(REGISTRY_PREFIX), {})
        folder = manifest.safe_join(store, facts["uri"]) if "uri" in facts else None
    else:
        folder = Path(name)
    try:
        content = None if folder is None else json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the stage says what is wrong with it
    return content if isinstance(content, dict) else None

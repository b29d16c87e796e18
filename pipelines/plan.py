"""What a run would do: which step runs, which is reused, and why. Nothing is executed, built or written.

1. The walk goes forward along the pipeline's edges. A step whose inputs are all in the store has a key; a step behind one that
   must run has none yet, and runs too.
2. The key is made exactly as the step makes it (components/*/step.py), so plan and run cannot disagree about it.
3. For a step that runs, its key is compared, part by part, with that of the last run of the same recipe name.
4. For a training stage that runs, its memory is estimated as the stage itself will do it (`plan_memory`).

A folder is believed here without hashing its files; the run itself verifies, and runs a step again whose folder was damaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.data import step as data_step
from components.data.registry_url import open_registry
from components.evaluate import step as evaluate_step
from components.platform import champion as champions
from components.platform import code, events, pools
from components.platform.events import EventType
from components.platform.reference import NONE, Reference
from components.platform.settings import Settings
from components.platform.step import key_of
from components.platform.store import StepRecord, open_store
from components.promote import step as promote_step
from components.register import step as register_step
from components.train import step as train_step
from model import recipe
from model.config import STAGE_NAMES, DataSlice, EvaluateSlice, Recipe, TrainSlice
from model.errors import BiovlmError, MissingInputError
from pipelines.plan_memory import PlannedMemory, explain


@dataclass(frozen=True)
class PlannedStep:
    """What would happen to one step."""

    name: str
    kind: str
    reused: bool
    reason: str
    key: str | None = None
    memory: PlannedMemory | None = None
    """Of a training stage that would run."""


class Walk:
    """The walk over one recipe: what is known of each artifact so far."""

    def __init__(self, settings: Settings, pieces: Mapping[str, dict[str, Any]], last: Mapping[str, StepRecord]) -> None:
        self._store, self._pieces, self._last = open_store(settings), pieces, last
        self.steps: list[PlannedStep] = []

    def visit(
        self, name: str, kind: str, piece: str, identity: Mapping[str, str] | None, waits_for: str = "the step before"
    ) -> Reference | None:
        """Plan one step; the reference of its result if that is in the store.

        Args:
            name: Name of the step.
            kind: Kind of step.
            piece: Name of its slice.
            identity: What of its inputs belongs to its key; None while some input does not exist.
            waits_for: What is to come before the identity can be known.
        """
        if identity is None:
            self.steps.append(PlannedStep(name, kind, False, f"waits for {waits_for}"))
            return None
        key = key_of(kind, self._pieces[piece], identity, code.digest(kind))
        folder = self._store.folder(kind, key)
        with contextlib.suppress(MissingInputError):
            found = self._store.manifest_of(self._store.uri(folder))
            self.steps.append(PlannedStep(name, kind, True, "same key", key))
            return Reference.to(folder, found)
        reason = why(self._last.get(name), self._pieces[piece], identity, code.digest(kind))
        self.steps.append(PlannedStep(name, kind, False, reason, key))
        return None

    def add_memory(self, memory: PlannedMemory) -> None:
        """Say of the step visited last what it takes."""
        self.steps[-1] = replace(self.steps[-1], memory=memory)


def plan(wanted: Recipe, settings: Settings, ask_registry: bool = True) -> list[PlannedStep]:
    """The steps of a run of `wanted`, in order.

    Args:
        wanted: The recipe.
        settings: Where the store is.
        ask_registry: Also ask the tracking store who is champion; without it, registration and promotion are left out.

    Raises:
        MissingInputError: The tracking store does not answer.
    """
    pieces = recipe.slices(wanted)
    gpu_memory = pools.choose(pools.load(settings.pools), wanted.resources.pool)[1].gpu_memory_gib
    walk = Walk(settings, pieces, last_records(settings, wanted.name))
    material = walk.visit("data", "data", "data", _data_identity(settings, pieces["data"]), "the data registry")
    checkpoint: Reference | None = None
    for stage in STAGE_NAMES:
        given = {"data": material} if stage == STAGE_NAMES[0] else {"data": material, "parent": checkpoint}
        identity = _if_all(given, lambda g, s=stage: train_step.identity(TrainSlice.model_validate(pieces[s]), g))
        checkpoint = walk.visit(stage, "train", stage, identity)
        if checkpoint is None:
            walk.add_memory(explain(TrainSlice.model_validate(pieces[stage]), material, settings.store, gpu_memory))
    questions = EvaluateSlice.model_validate(pieces["evaluate"])
    given = {"data": material, "checkpoint": checkpoint}
    report = walk.visit("evaluate", "evaluate", "evaluate", _if_all(given, lambda g: evaluate_step.identity(questions, g)))
    if ask_registry:
        _plan_promotion(walk, settings, wanted, questions, material, checkpoint, report)
    return walk.steps


def _plan_promotion(
    walk: Walk,
    settings: Settings,
    wanted: Recipe,
    questions: EvaluateSlice,
    material: Reference | None,
    checkpoint: Reference | None,
    report: Reference | None,
) -> None:
    champion, mark = champions.look(settings, wanted.registered_model)
    rival: Reference | None = Reference(kind=NONE)
    if champion.is_none:
        walk.steps.append(PlannedStep("champion", "evaluate", True, "there is no champion yet"))
    else:
        given = {"data": material, "checkpoint": champion}
        rival = walk.visit("champion", "evaluate", "evaluate", _if_all(given, lambda g: evaluate_step.identity(questions, g)))
    tracking = mark or ""  # without a mark the first registration is still to come, and no key of it is known
    given = {"data": material, "checkpoint": checkpoint, "report": report if mark else None}
    receipt = walk.visit("register", "register", "register", _if_all(given, lambda g: register_step.identity(tracking, g)))
    given = {"receipt": receipt, "report": report, "champion": champion, "champion_report": rival}
    walk.visit("promote", "promote", "promote", _if_all(given, lambda g: promote_step.identity(tracking, g)))


def _if_all(given: Mapping[str, Reference | None], identity: Any) -> dict[str, str] | None:
    """`identity(given)`, or None if something of it does not exist yet."""
    known = {role: ref for role, ref in given.items() if ref is not None}
    return identity(known) if len(known) == len(given) else None


def _data_identity(settings: Settings, piece: Mapping[str, Any]) -> dict[str, str] | None:
    """None where the registry has not got the data yet, or would build it anew."""
    wanted, registry = DataSlice.model_validate(piece), open_registry(settings)
    try:
        return data_step.identity(wanted, registry) if data_step.is_built(wanted, registry) else None
    except BiovlmError:
        return None


def why(last: StepRecord | None, piece: Mapping[str, Any], identity: Mapping[str, str], code_digest: str) -> str:
    """Which part of a key is not what it was in `last`."""
    if last is None:
        return "runs for the first time"
    changes = [f"recipe: {name}" for name in _changed(last.piece, recipe.key_content(piece))]
    changes += [f"input: {role}" for role in sorted({*last.identity, *identity}) if last.identity.get(role) != identity.get(role)]
    changes += ["code"] if last.code != code_digest else []
    return "; ".join(changes) or "its result is no longer in the store"


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two JSON values differ."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [prefix.rstrip(".")]
    return [name for key in sorted({*old, *new}) for name in _changed(old.get(key), new.get(key), f"{prefix}{key}.")]


def last_records(settings: Settings, recipe_name: str) -> dict[str, StepRecord]:
    """Step -> record of its result in the newest run of the recipe that got so far."""
    found: dict[str, StepRecord] = {}
    store = open_store(settings)
    for folder in sorted((settings.home / "runs").glob(f"*-{recipe_name}-*"), reverse=True):
        for event in events.read(Path(folder) / "events.jsonl"):
            if event.type in (EventType.FINISHED, EventType.REUSED) and event.step not in found and "key" in event.facts:
                record = store.record(event.facts["kind"], event.facts["key"])
                if record is not None:
                    found[event.step] = record
    return found

"""Where a version comes from, as data: the records of the steps that made it, and the recipe that they were slices of.

1. `records` walks from a receipt to the records of every step behind it.
2. `recipe` puts their slices together again. They are taken as they were written, so an older code reads its own fields.

What no step's result depends on is in no record: description, how it was promoted, and of the resources all but the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.platform.store import StepRecord, Store
from model.config import STAGE_NAMES
from model.manifest import digest_of

MADE_BY = ("data", *STAGE_NAMES, "evaluate", "register")
"""Steps without whose records nobody can say what a version was made of."""
SHARED = ("seed", "model", "resources")
"""Fields of a stage's slice that a recipe has once."""


def records(store: Store, receipt_key: str) -> dict[str, StepRecord]:
    """Name of a step -> record, of everything behind a receipt, as far as the store has it."""
    found: dict[str, StepRecord] = {}
    record = store.record("register", receipt_key)
    waiting = [record] if record else []
    while waiting:
        one = waiting.pop()
        # The champion is evaluated by the same step under another name; behind a receipt stands the candidate's report alone.
        found.setdefault("evaluate" if one.kind == "evaluate" else one.name, one)
        for source in one.inputs.values():
            before = store.record_of(source.uri)
            if before is not None and before not in found.values():
                waiting.append(before)
    return found


def contradictions(found: Mapping[str, StepRecord]) -> list[str]:
    """What the stages of one run have in common and these records, of all of `MADE_BY`, say differently."""
    said = []
    for field in SHARED:
        values = {stage: found[stage].piece.get(field) for stage in STAGE_NAMES}
        if any(value != values["task"] for value in values.values()):
            said.append(f"{field} is {', '.join(f'{_short(value)} in {stage}' for stage, value in values.items())}")
    return said


def _short(value: object) -> str:
    return str(value) if isinstance(value, int | float) else digest_of(value)[:12]


def recipe(found: Mapping[str, StepRecord], sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The recipe behind a version, as a file of its own would say it.

    Args:
        found: The records of all of `MADE_BY`.
        sets: Data set -> facts of the data artifact, with the `revision` that was read.
    """
    task, top = found["task"].piece, found["register"].piece
    return {
        "name": top["recipe"],
        "registered_model": top["registered_model"],
        "seed": task["seed"],
        "data": {**found["data"].piece["data"], "sets": {name: {"revision": facts["revision"]} for name, facts in sets.items()}},
        "model": task["model"],
        "stages": {stage: found[stage].piece["stage"] for stage in STAGE_NAMES},
        "evaluation": found["evaluate"].piece["evaluation"],
        "resources": task["resources"],
    }

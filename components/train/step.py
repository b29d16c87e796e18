"""A training step: hand a stage to workers, and its result to the store.

1. What the stage reads, and nothing else of the data, belongs to its key: another set in the recipe does not train it again.
2. The step makes a task of it: what is to be done, and which artifacts are read.
3. The launcher (components/platform/launcher.py) has `worker.train` run it, on this machine or in a cluster, until it is done or a
   worker died too often, counted over all layers that could begin again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

from components.platform import inputs, launcher
from components.platform.heavy import Result
from components.platform.reference import Reference
from components.platform.step import Work, run_step
from model.config import TrainSlice
from model.recipe import registered_bases

WORKER = "components.train.worker.train"


def run(piece: str, data: str, parent: str | None, checkpoint: str) -> None:
    """Train or reuse one stage, and write the reference of its checkpoint.

    Args:
        piece: The stage's slice, as JSON.
        data: Path of the data reference.
        parent: Path of the reference to the checkpoint before, for all stages but the first.
        checkpoint: Where the reference goes.
    """
    content = json.loads(piece)
    wanted = TrainSlice.model_validate(content)

    identify = partial(identity, wanted)
    run_step("train", wanted.stage_name, content, {"data": data, "parent": parent}, checkpoint, _produce, identify, heavy=True)


def identity(wanted: TrainSlice, given: Mapping[str, Reference]) -> dict[str, str]:
    """What of the inputs belongs to the key: the sets, base models and records that the stage reads, and the checkpoint
    before."""
    return inputs.identity(given["data"], _names(wanted)) | ({"parent": given["parent"].digest} if "parent" in given else {})


def _produce(work: Work) -> Result | None:
    wanted = TrainSlice.model_validate(work.piece)
    artifacts = inputs.sources(work.inputs["data"], _names(wanted))
    parent = work.inputs.get("parent")
    if parent is not None:
        artifacts["parents"] = {"parent": work.source(parent)}
    job = {"piece": dict(work.piece), "audit": inputs.audit(work.inputs["data"], artifacts["sets"])}
    return launcher.run(work.task(WORKER, job, artifacts, wanted.resources), work)


def _names(wanted: TrainSlice) -> set[str]:
    """Data sets and base models that the stage reads."""
    return {mix.set for mix in wanted.stage.data} | set(registered_bases(wanted.model))

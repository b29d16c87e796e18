"""A training step: hand a stage to Ray's workers, and its result to the store.

1. What the stage reads, and nothing else of the data, belongs to its key: another set in the recipe does not train it again.
2. Sets and base models are verified; the workers get paths, never bytes.
3. `launch.run_workers` runs `worker.train` until it is done or a worker died too often, counted over all layers that could begin
   again. A SIGTERM to this process becomes a file that the workers look for after each step: they save a checkpoint, and the step
   ends with exit 75. A second signal changes nothing.
4. An error that the worker wrote down (components/train/worker.py) is raised here, with its own exit code and hint.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType

from components.platform import inputs, launch
from components.platform.reference import Reference
from components.platform.retries import Attempts, forgiven
from components.platform.step import Work, run_step
from components.train.letter import raise_letter
from model.config import ModelSource, TrainSlice
from model.recipe import REGISTRY_PREFIX

STOP_FILE = "stop"
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
    run_step("train", wanted.stage_name, content, {"data": data, "parent": parent}, checkpoint, _produce, identify)


def identity(wanted: TrainSlice, given: Mapping[str, Reference]) -> dict[str, str]:
    """What of the inputs belongs to the key: the sets, base models and records that the stage reads, and the checkpoint
    before."""
    return inputs.identity(given["data"], _names(wanted)) | ({"parent": given["parent"].digest} if "parent" in given else {})


def _produce(work: Work) -> None:
    wanted = TrainSlice.model_validate(work.piece)
    found = inputs.verified(work.inputs["data"], work.store, _names(wanted))
    for stale in (STOP_FILE, "letter.json"):
        (work.scratch / stale).unlink(missing_ok=True)
    counted_in = work.scratch.with_name(f"{work.scratch.name}.attempts")
    attempts = Attempts(counted_in, work.settings.run_id)
    attempts.check()
    job = {
        "piece": dict(work.piece),
        "sets": {name: str(path) for name, path in found["sets"].items()},
        "bases": {name: str(path) for name, path in found["bases"].items()},
        "audit": inputs.audit(work.inputs["data"], found["sets"]),
        "parent": work.inputs["parent"].uri if "parent" in work.inputs else None,
        "scratch": str(work.scratch),
        "stop": str(work.scratch / STOP_FILE),
        "final": str(work.final),
        "feature_cache": {
            "folder": str(work.settings.feature_cache),
            "limit_bytes": work.settings.feature_cache_bytes,
        },
        "events": str(work.log.path),
        "attempt": work.log.attempt,
        "attempts": str(counted_in),
        "run_id": work.settings.run_id,
        "checkpoints": work.settings.checkpoints,
        "key": work.key,
    }
    failures = forgiven(wanted.resources.max_failures, attempts.counted)
    resources = wanted.resources.model_copy(update={"max_failures": failures})
    with _stop_by_file(work.scratch / STOP_FILE):
        try:
            launch.run_workers(WORKER, job, work.key[:32], work.scratch / "ray", resources, work.settings)
        finally:
            raise_letter(work.scratch)
    shutil.rmtree(work.scratch, ignore_errors=True)
    counted_in.unlink(missing_ok=True)


def _names(wanted: TrainSlice) -> set[str]:
    """Data sets and base models that the stage reads."""
    return {mix.set for mix in wanted.stage.data} | set(_bases((wanted.model.tower, wanted.model.language)))


def _bases(sources: tuple[ModelSource, ...]) -> list[str]:
    """Names in the data registry among the sources of a model's parts."""
    named = [source.source for source in sources if source.source and source.source.startswith(REGISTRY_PREFIX)]
    return [name.removeprefix(REGISTRY_PREFIX) for name in named]


@contextlib.contextmanager
def _stop_by_file(path: Path) -> Iterator[None]:
    """Inside, SIGTERM asks the workers to stop at the next step, instead of stopping this process at once."""

    def ask(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # on a full disk the workers cannot be asked, and this is no place to fail
            path.touch()

    path.parent.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

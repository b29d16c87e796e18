"""What runs in each Ray Train worker: one stage, reporting to the event log.

1. `train(job)` opens what the step named and calls `model.training.stage.run_stage`, which takes up the newest good checkpoint in
   the scratch folder by itself. So a worker that Ray starts again goes on where the dead one had saved.
2. Rank 0 appends progress to the event log; the mirror carries it to MLflow. Ray gets one report at the end: each report waits
   for Ray's controller, and a stage of short steps would spend its time there.
3. A BiovlmError is a finding, not a death of the worker: it is written down for the step. Alone, the worker then returns; among
   others it raises, so that Ray also ends those that wait for it, and the started-again workers find the letter and return. Any
   other error, or a killed process, is Ray's to retry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train

from components.platform.events import EventLog, EventType
from components.train import letter
from model.config import TrainSlice
from model.errors import BiovlmError, InternalError


class EventReporter:
    """`model.training.reporter.Reporter` that appends to the run's event log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def metrics(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._log.write(EventType.PROGRESS, done=step, total=total, unit="steps", metrics=dict(values))

    def resumed(self, step: int) -> None:
        self._log.write(EventType.RESUMED, done=step, unit="steps")

    def note(self, text: str) -> None:
        self._log.write(EventType.NOTE, message=text)


def train(job: dict[str, Any]) -> None:
    """Run the stage that `job` describes (see `components/train/step.py`)."""
    scratch = Path(job["scratch"])
    if (scratch / letter.NAME).exists():
        return
    try:
        _run(job, scratch)
    except InternalError:
        raise
    except BiovlmError as error:
        letter.write(scratch, error)
        if ray.train.get_context().get_world_size() > 1:
            raise


def _run(job: dict[str, Any], scratch: Path) -> None:
    from model.architecture.features import Disk
    from model.training.reporter import SilentReporter
    from model.training.stage import StageInputs, run_stage

    piece = TrainSlice.model_validate(job["piece"])
    leads = ray.train.get_context().get_world_rank() == 0
    log = EventLog(Path(job["events"]), piece.stage_name, job["attempt"])
    given = StageInputs(
        sets={name: Path(path) for name, path in job["sets"].items()},
        bases={name: Path(path) for name, path in job["bases"].items()},
        parent=Path(job["parent"]) if job["parent"] else None,
        feature_cache=Disk(Path(job["feature_cache"]["folder"]), job["feature_cache"]["limit_bytes"]),
        **job["audit"],
    )
    stop = Path(job["stop"])
    done = run_stage(
        piece, given, scratch / "work", Path(job["final"]), EventReporter(log) if leads else SilentReporter(), stop.exists
    )
    ray.train.report({"digest": done.digest})

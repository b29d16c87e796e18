"""What runs in each Ray Train worker: one stage, reporting to the event log.

1. `train(job)` opens what the step named and calls `model.training.stage.run_stage`, which takes up the newest good checkpoint in
   the scratch folder, or in the bucket of the settings, by itself. So a worker that Ray starts again goes on where the dead one had
   saved, on whatever node it is.
2. Rank 0 appends progress to the event log; the mirror carries it to MLflow. Ray gets one report at the end: each report waits
   for Ray's controller, and a stage of short steps would spend its time there.
3. A worker stops, with all others, at the end of the step in which one of them was asked; errors go by letter
   (components/platform/workers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train

from components.platform.events import EventLog, EventType
from components.platform.workers import asked, with_letters
from model.config import TrainSlice


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
    """Run the stage that `job` describes (components/platform/task.py)."""
    with_letters(job, lambda leads: _run(job, Path(job["scratch"]), leads))


def _run(job: dict[str, Any], scratch: Path, leads: bool) -> None:
    from model.architecture.features import Disk
    from model.training.reporter import SilentReporter
    from model.training.stage import StageInputs, run_stage

    piece = TrainSlice.model_validate(job["piece"])
    log = EventLog(Path(job["events"]), piece.stage_name, job["attempt"])
    given = StageInputs(
        sets={name: Path(path) for name, path in job["sets"].items()},
        bases={name: Path(path) for name, path in job["bases"].items()},
        parent=Path(job["parents"]["parent"]) if job["parents"] else None,
        feature_cache=Disk(Path(job["feature_cache"]["folder"]), job["feature_cache"]["limit_bytes"]),
        **job["audit"],
    )
    reporter = EventReporter(log) if leads else SilentReporter()
    stop = Path(job["stop"])
    done = run_stage(piece, given, _place(job, scratch), Path(job["final"]), reporter, lambda: asked(stop))
    ray.train.report({"digest": done.digest})


def _place(job: dict[str, Any], scratch: Path) -> Any:
    """Where the intermediate checkpoints are: a folder, or a bucket."""
    if not job["checkpoints"]:
        return scratch / "work"
    from components.platform import bucket  # boto3, for those who keep checkpoints there

    return bucket.open_place(job["checkpoints"], "train", job["key"])

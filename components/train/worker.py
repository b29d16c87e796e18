"""What runs in each Ray Train worker: one stage, reporting to the event log.

1. `train(job)` opens what the step named and calls `model.training.stage.run_stage`, which takes up the newest good checkpoint in
   the scratch folder, or in the bucket of the settings, by itself. So a worker that Ray starts again goes on where the dead one had
   saved, on whatever node it is.
2. Rank 0 appends progress to the event log; the mirror carries it to MLflow. Ray gets one report at the end: each report waits
   for Ray's controller, and a stage of short steps would spend its time there.
3. A worker stops, with all others, at the end of the step in which one of them was asked: by the step's stop file, by a SIGTERM to
   its process, or by Ray's notice that its node will be taken away.
4. A BiovlmError is a finding, not a death of the worker: it is written down for the step. Alone, the worker then returns; among
   others it raises, so that Ray also ends those that wait for it, and the started-again workers find the letter and return. After a
   stop all return by themselves: a grace time has no room for a restart. An InternalError, any other error or a killed process is
   Ray's to retry, as far as the attempts over all layers go (components/platform/retries.py).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import ray.train
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.context import get_train_context

from components.platform.events import EventLog, EventType
from components.platform.retries import Attempts, again
from components.train import letter
from model.config import TrainSlice
from model.errors import BiovlmError, InternalError, PreemptedError

TERMINATED = threading.Event()
"""Set once this worker process got a SIGTERM."""


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's process group of torch; and each worker listens for SIGTERM, where Ray would end it at once."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(listen)  # in the main thread of each worker: training runs in another one, which may not


class Stoppable(TorchConfig):
    """Ray's settings for torch, with workers that can be stopped by a signal."""

    @property
    def backend_cls(self) -> type[Any]:
        return _Backend


def listen() -> None:
    """From now on a SIGTERM only sets `TERMINATED`; a second one changes nothing."""

    def note(number: int, frame: FrameType | None) -> None:
        TERMINATED.set()

    signal.signal(signal.SIGTERM, note)


def torch_config(timeout_seconds: float) -> TorchConfig:
    """How Ray shall join the workers. The timeout of torch's own waits is above ours, which say more (model/training/ranks.py)."""
    return Stoppable(timeout_s=max(1800, int(2 * timeout_seconds)))


def asked(stop: Path) -> bool:
    """Whether this worker shall end: asked after each step, by every worker for itself."""
    # Not ray.train.get_preemption_info, which lets all workers wait for each other; the loop has a message for all in each step.
    return TERMINATED.is_set() or get_train_context().preemption_context.preemption_info is not None or stop.exists()


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
    scratch, attempts = Path(job["scratch"]), Attempts(Path(job["attempts"]), job["run_id"])
    if (scratch / letter.NAME).exists():
        return
    leads = ray.train.get_context().get_world_rank() == 0
    try:
        if leads:
            attempts.begin()
        _run(job, scratch, leads)
    except PreemptedError as error:
        if leads:
            attempts.stopped()
        letter.write(scratch, error)
    except BiovlmError as error:
        if isinstance(error, InternalError) and again(error.exit_code, attempts.counted):
            raise
        letter.write(scratch, error)
        if ray.train.get_context().get_world_size() > 1:
            raise


def _run(job: dict[str, Any], scratch: Path, leads: bool) -> None:
    from model.architecture.features import Disk
    from model.training.reporter import SilentReporter
    from model.training.stage import StageInputs, run_stage

    piece = TrainSlice.model_validate(job["piece"])
    log = EventLog(Path(job["events"]), piece.stage_name, job["attempt"])
    given = StageInputs(
        sets={name: Path(path) for name, path in job["sets"].items()},
        bases={name: Path(path) for name, path in job["bases"].items()},
        parent=Path(job["parent"]) if job["parent"] else None,
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

"""What every Ray Train worker of biovlm does around its own work: it can be stopped, and its errors arrive.

1. `torch_config` lets Ray join the workers, and lets each of them listen for SIGTERM.
2. A worker stops when it was `asked`: by the stop file of its step, by a SIGTERM to its process, or by Ray's notice that its node will
   be taken away.
3. `with_letters` runs the work. A BiovlmError is a finding, not a death of the worker: it is written down for the step. Alone, the
   worker then returns; among others it raises, so that Ray also ends those that wait for it, and the started-again workers find the
   letter and return. After a stop all return by themselves: a grace time has no room for a restart. An InternalError, any other error or
   a killed process is Ray's to retry, as far as the attempts over all layers go (components/platform/retries.py).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import ray.train
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.context import get_train_context

from components.platform import letter
from components.platform.retries import Attempts, again
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


def with_letters(job: dict[str, Any], run: Callable[[bool], None]) -> None:
    """Run `run(leads)` in this worker.

    Args:
        job: Of local paths: `scratch` and `attempts`, and the `run_id` (components/platform/task.py).
        run: The work; it is told whether this is rank 0.
    """
    scratch, attempts = Path(job["scratch"]), Attempts(Path(job["attempts"]), job["run_id"])
    if (scratch / letter.NAME).exists():
        return
    context = ray.train.get_context()
    leads = context.get_world_rank() == 0
    try:
        if leads:
            attempts.begin()
        run(leads)
    except PreemptedError as error:
        if leads:
            attempts.stopped()
        letter.write(scratch, error)
    except BiovlmError as error:
        if isinstance(error, InternalError) and again(error.exit_code, attempts.counted):
            raise
        letter.write(scratch, error)
        if context.get_world_size() > 1:
            raise

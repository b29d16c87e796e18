"""Writing checkpoints while the steps go on: one thread, at most one checkpoint in flight.

1. `settle` waits until nothing is in flight; then the state is copied, at a step boundary, and `submit` gets the work of writing the
   copy. In this order memory holds one copy, never two; `submit` insists on it.
2. The work that fails is remembered, not raised: `failure` is asked at each step boundary, and all ranks end there together.
3. A stop and the end of the run settle as well.

Every wait has an end: a store that does not answer for `patience_seconds` is a failure like any other. The thread is a daemon, so
that it cannot keep a process alive that has given up on it; a process that ends in order has settled before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from model import manifest
from model.errors import BiovlmError, InternalError


class Writer:
    """One background thread at a time.

    Args:
        label: Of the place it writes to, for letters.
        patience_seconds: Longest wait for one piece of work.
    """

    def __init__(self, label: str, patience_seconds: float) -> None:
        self._label = label
        self._patience_seconds = patience_seconds
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.waited_seconds = 0.0
        """How long the steps have stood still for this writer."""

    @property
    def failure(self) -> BiovlmError | None:
        """Why nothing more will be written; None while all is well."""
        error = self._failure
        if error is None or isinstance(error, BiovlmError):
            return error
        letter = manifest.failed_write(Path(self._label), error)
        return letter or InternalError(
            f"a checkpoint could not be written to {self._label}: {type(error).__name__}",
            "the checkpoints before it are untouched; see the trace in the log",
        )

    def submit(self, work: Callable[[], None]) -> None:
        """Begin `work` in the background; nothing is begun after a failure. RuntimeError if something may be in flight."""
        if self._thread is not None:
            raise RuntimeError("a checkpoint is still being written: settle before the next is copied")
        if self._failure is None:
            self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint-writer", daemon=True)
            self._thread.start()

    def pause(self, seconds: float) -> None:
        """Wait for what is in flight, so long at most; it may go on after that."""
        if self._thread is not None and seconds > 0:
            began = time.monotonic()
            self._thread.join(seconds)
            self.waited_seconds += time.monotonic() - began

    def settle(self) -> None:
        """Wait until nothing is in flight, at most `patience_seconds`; then see `failure`."""
        if self._thread is None:
            return
        began = time.monotonic()
        self._thread.join(self._patience_seconds)
        self.waited_seconds += time.monotonic() - began
        if self._thread.is_alive() and self._failure is None:
            self._failure = InternalError(
                f"a checkpoint has been under way to {self._label} for more than {self._patience_seconds:,.0f} s",
                "the store does not answer; the checkpoints before it are untouched and the same command goes on from there",
            )
        self._thread = None

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (whatever it is, the ranks must hear of it)
            self._failure = error

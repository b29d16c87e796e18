"""Ends a worker that stands still: it says where it stands, and its process ends with exit 70, so that somebody can start it again.

1. The loop calls `beat` before every forward pass and after every step.
2. Without a beat for `seconds`, a thread of the watchdog writes the stacks of all threads to stderr (places in the code, no values),
   tells the other workers, and ends the process. The main thread cannot be asked: it may be inside a library that never returns.

A worker that waits for another one ends by itself, earlier and in order (ranks); the watchdog is for the one that is waited for,
and for waits that are not ours (DeepSpeed's).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from model.errors import BiovlmError, ExitCode, InternalError

PATIENCE = 1.5
"""How much longer than those who wait for it a worker may stand still: they shall have ended before it does."""


def dump_stacks() -> None:
    """Where every thread of this process is, on its own stderr."""
    with contextlib.suppress(OSError, ValueError):
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)


def end_process(letter: BiovlmError) -> None:
    """Say why, and end without waiting for any thread."""
    with contextlib.suppress(OSError, ValueError):
        os.write(2, f"{letter}\n".encode())
    os._exit(int(ExitCode.INTERNAL))


class Watchdog:
    """Watches one process while it is entered.

    Args:
        seconds: Longest time between two beats.
        tell: Gets the letter before the process ends, for the other workers.
        end: How it ends.
    """

    def __init__(
        self, seconds: float, tell: Callable[[BiovlmError], object], end: Callable[[BiovlmError], object] = end_process
    ) -> None:
        self._seconds, self._tell, self._end = seconds, tell, end
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """The worker is alive."""
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(max(0.01, self._last + self._seconds - time.monotonic())):
            still = time.monotonic() - self._last
            if still < self._seconds:
                continue
            letter = InternalError(
                f"this worker has stood still for {still:,.0f} s, resources.stall_seconds allows {self._seconds:,.0f}",
                "its stacks are above; the same command goes on from the last checkpoint",
            )
            dump_stacks()
            with contextlib.suppress(Exception):
                self._tell(letter)
            self._end(letter)
            return

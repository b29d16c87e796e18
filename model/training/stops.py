"""How a process is asked to stop: SIGTERM and SIGINT become a question that the loop asks once a step.

The handler only sets a flag, so a signal in the middle of a save does not disturb it, and a second signal changes nothing. The loop
adds the flags over all workers: it is enough that one of them was asked.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def asked_by_signal() -> Iterator[Callable[[], bool]]:
    """Inside, the signals do not end the process; the given function says whether one has come. Main thread only."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What SIGTERM does to the process that waits for heavy work: it asks the workers, and goes on waiting for them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def on_sigterm(act: Callable[[], object]) -> Iterator[None]:
    """Inside, SIGTERM calls `act`, which must be short, instead of ending this process."""

    def note(signum: int, frame: FrameType | None) -> None:
        act()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

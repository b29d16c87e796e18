"""Programs that must not outlive this process, however it dies."""

from __future__ import annotations

import shutil
import signal


def bound(end_with: signal.Signals) -> tuple[str, ...]:
    """What to put before a command, so that the kernel sends its process a signal when this one is gone; nothing without util-linux."""
    return ("setpriv", "--pdeathsig", end_with.name.removeprefix("SIG")) if shutil.which("setpriv") else ()

"""The preStop hook of a Ray worker's pod: `python -m components.platform.kuberay.prestop SECONDS`.

Kubernetes and KubeRay end a preempted pod without a word to the training in it. This sends SIGTERM to Ray's worker processes, which
save and end with 75, and holds the pod until they are gone or the time is up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

RAY_WORKER = b"ray::"
"""How Ray titles its worker processes."""


def workers(proc: Path = Path("/proc")) -> list[int]:
    """Process ids of Ray's workers in this pod that still run."""
    found = []
    for folder in proc.iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(RAY_WORKER):
                found.append(int(folder.name))
    return found


def stop(seconds: float) -> int:
    """Ask all workers to stop and wait for them at most `seconds`; returns how many are left."""
    for pid in workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + seconds
    while (left := len(workers())) and time.monotonic() < until:
        time.sleep(0.2)
    return left


if __name__ == "__main__":
    stop(float(sys.argv[1]))

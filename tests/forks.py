"""Children forked from a process that has imported everything: a run in a process of its own costs milliseconds.

Only for a parent that has no group, no engine and no working threads open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

BROKEN = 99
"""Exit code of a child that ended by an error nobody expected; its trace is on stderr."""


def forked(acts: Sequence[Callable[[], int]], deadline_s: float = 60) -> list[int]:
    """What each act returns in a child of its own, or minus the signal that ended it; all run side by side.

    AssertionError if one has not ended after `deadline_s`; then all are killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    processes = [start(act) for act in acts]
    deadline = time.monotonic() + deadline_s
    codes: dict[int, int] = {}
    try:
        while len(codes) < len(processes):
            assert time.monotonic() < deadline, f"still running after {deadline_s} s: {sorted(set(processes) - codes.keys())}"
            for process in processes:
                if process not in codes:
                    done, status = os.waitpid(process, os.WNOHANG)
                    if done:
                        codes[process] = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
    finally:
        for process in set(processes) - codes.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    return [codes[process] for process in processes]


def start(act: Callable[[], int]) -> int:
    """Id of a child that ends with what `act` returns."""
    process = os.fork()
    if process:
        return process
    code = BROKEN
    try:
        code = act()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)

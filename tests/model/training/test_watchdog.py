from __future__ import annotations

import subprocess
import sys
import threading
import time

from model.errors import BiovlmError, ExitCode
from model.training.watchdog import Watchdog

STUCK = """
import threading
from model.training.watchdog import Watchdog
def stand_still():
    threading.Event().wait(60)
with Watchdog(0.2, print) as watchdog:
    watchdog.beat()
    stand_still()
"""


def test_a_process_that_stands_still_tells_its_stacks_and_ends_with_70() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == ExitCode.INTERNAL
    assert "in stand_still" in done.stderr
    assert "resources.stall_seconds allows 0" in done.stderr
    assert "hint: its stacks are above" in done.stdout


def test_beats_keep_it_quiet_and_leaving_ends_it() -> None:
    letters: list[BiovlmError] = []
    ended = threading.Event()
    with Watchdog(0.4, letters.append, lambda letter: ended.set()) as watchdog:
        for _ in range(12):
            time.sleep(0.05)
            watchdog.beat()
    assert not ended.wait(0.6)
    with Watchdog(0.05, letters.append, lambda letter: ended.set()):
        assert ended.wait(20)
    assert len(letters) == 1

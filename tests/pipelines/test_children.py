"""What a killed process started is asked to end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.platform.settings import CHECKOUT

RUN = """
import signal, sys, time
from pathlib import Path

def ended(*_):
    Path("ended").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, ended)
Path("begun").touch()
time.sleep(60)
"""
"""In the place of `biovlm run`: it leaves word when it is asked to end."""
REPRODUCE = """
import sys
from pathlib import Path
from pipelines.reproduce import Rebuilt, run
run(Rebuilt(Path(sys.argv[1]), Path(sys.argv[1])))
"""
PATIENCE_SECONDS = 20.0


def until(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.exists()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux is not installed")
def test_a_reproduction_that_is_killed_leaves_no_run_behind(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").touch()
    (tmp_path / "pipelines" / "cli.py").write_text(RUN)
    reproduction = subprocess.Popen((sys.executable, "-c", REPRODUCE, str(tmp_path)), cwd=CHECKOUT)
    try:
        assert until(tmp_path / "begun")
    finally:
        reproduction.kill()
        reproduction.wait()
    assert until(tmp_path / "ended")

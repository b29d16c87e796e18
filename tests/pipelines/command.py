"""A command of a person, as the process of its own that it is, with everything that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from components.platform.settings import CHECKOUT

SECONDS = 900
END_SECONDS = 40
ELSEWHERE = ("MLFLOW_TRACKING_URI", "BIOVLM_DATA", "BIOVLM_STORE", "BIOVLM_RUN_ID", "BIOVLM_EVENTS")


def call(home: Path, *words: object, seconds: float = SECONDS) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python WORDS` at `home`. If it does not end in time, nothing of it is left."""
    environment = {**os.environ, "BIOVLM_HOME": str(home), "PYTHONPATH": str(CHECKOUT)}
    for name in ELSEWHERE:
        environment.pop(name, None)
    pipe, command = subprocess.PIPE, (sys.executable, *map(str, words))
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=CHECKOUT, env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        _end(process)
        raise
    return process.returncode, out, err


def _end(process: subprocess.Popen[str]) -> None:
    """First as a person would: a run that is interrupted ends its engine and its Ray, which are in sessions of their own."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

"""The whole pipeline in a fresh home: first run, second run, a run with a changed task stage, and one whose worker is killed.

Wall time and processor time stand side by side, since on a machine that others use only the second repeats. Memory is the largest sum
of the resident sets of all processes of a run; shared pages are counted in each, so it is an upper bound.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

BIOVLM = Path(sys.executable).with_name("biovlm")
CHANGED = ("--set", "stages.task.warmup=0.05")
KILLED = ("--set", "stages.task.warmup=0.06")
POLL_SECONDS = 0.5


def measure() -> dict[str, float]:
    """Seconds, processor seconds and MiB of four runs; figures of the first; steps reused by the second and the third."""
    with tempfile.TemporaryDirectory(prefix="biovlm-whole-way-") as home:
        first, numbers = _run(Path(home), ())
        figures = next(step["figures"] for step in first["steps"] if step["name"] == "evaluate")
        found = {f"first_{name}": value for name, value in numbers.items()}
        found |= {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
        for title, options, watch in (
            ("second", (), None),
            ("changed_task", CHANGED, None),
            ("killed_worker", KILLED, _kill_worker),
        ):
            result, numbers = _run(Path(home), options, watch)
            found |= {f"{title}_{name}": value for name, value in numbers.items()}
            found[f"{title}_steps_reused"] = float(sum(step["state"] == "reused" for step in result["steps"]))
            found[f"{title}_resumed_from_step"] = float(max((step["resumed_from"] or 0 for step in result["steps"]), default=0))
    return found


def _run(
    home: Path, options: tuple[str, ...], watch: Callable[[psutil.Process, Path], Iterator[None]] | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """One `biovlm run --json`, with its result and what it took; RuntimeError if it fails."""
    environment = {**os.environ, "BIOVLM_HOME": str(home)}
    started = time.perf_counter()
    process = subprocess.Popen([str(BIOVLM), "run", "--json", *options], stdout=subprocess.PIPE, env=environment, text=True)
    peak: list[float] = [0.0]
    watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), home, peak, watch), daemon=True)
    watcher.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"biovlm run {' '.join(options)} ended with exit code {process.returncode}")
    return json.loads(out), {"seconds": seconds, "peak_memory_mib": peak[0] / 2**20}


def _watch(
    process: psutil.Process, home: Path, peak: list[float], watch: Callable[[psutil.Process, Path], Iterator[None]] | None
) -> None:
    acting = watch(process, home) if watch else iter(())
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        peak[0] = max(peak[0], sum(_resident(p) for p in _family(home)))
        next(acting, None)
        time.sleep(POLL_SECONDS)


def _family(home: Path) -> list[psutil.Process]:
    """Processes that work for this home, whoever started them: Ray's daemons leave their parent's family."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BIOVLM_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _kill_worker(process: psutil.Process, home: Path) -> Iterator[None]:
    """Kill the training worker once, after the stage's first checkpoint."""
    while True:
        workers = [p for p in _family(home) if "RayTrainWorker" in " ".join(_command(p))]
        if workers and any((home / "store" / "work").rglob("step-*/manifest.json")):
            os.kill(workers[0].pid, signal.SIGKILL)
            return
        yield


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []

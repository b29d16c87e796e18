"""One run of one framework: a process of its own, with the processor seconds of all of it and what it says of its steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.versus.adapters.job import Job
from benchmarks.versus.environments import OFFLINE, python_of

ROOT = Path(__file__).resolve().parents[2]


class RunError(Exception):
    """A run ended badly; the text holds the end of what it said."""


@dataclass(frozen=True)
class Contender:
    """A framework in one configuration."""

    label: str
    framework: str
    tuned: bool = True
    packing: str = "none"
    cached: bool = False
    """Ours: features of all images are found on disk, left there by a run before, as in a second epoch, stage or trial."""
    passes: int = 0
    """Documents of one forward pass; 0 for all of a step's. Small passes stay in a processor's caches."""


CONTENDERS = (
    Contender("ours, no packing", "ours"),
    Contender("ours, no packing, passes of 2", "ours", passes=2),
    Contender("ours, rows", "ours", packing="rows"),
    Contender("ours, shared image", "ours", packing="shared_image"),
    Contender("ours, rows, features cached", "ours", packing="rows", cached=True),
    Contender("ours, shared image, features cached", "ours", packing="shared_image", cached=True),
    Contender("ours, no packing, features cached", "ours", cached=True),
    Contender("ours, passes of 2, features cached", "ours", passes=2, cached=True),
    Contender("ms-swift tuned", "swift"),
    Contender("ms-swift tuned, passes of 2", "swift", passes=2),
    Contender("ms-swift tuned, packing forced", "swift", packing="forced"),
    Contender("ms-swift default", "swift", tuned=False),
    Contender("LLaMA-Factory tuned", "llamafactory"),
    Contender("LLaMA-Factory tuned, neat_packing", "llamafactory", packing="neat"),
    Contender("LLaMA-Factory default", "llamafactory", tuned=False),
    Contender("TRL tuned", "trl"),
    Contender("TRL default", "trl", tuned=False),
)


def run(framework: str, job: Job) -> float:
    """Do the job in the framework's environment; processor seconds of the whole process, start-up and all.

    Raises:
        RunError: It failed, or took longer than an hour.
    """
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    (job.folder / "job.json").write_text(json.dumps(asdict(job)))
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HOME": str(job.folder / "hf"), "TRITON_CACHE_DIR": str(job.folder / "triton")}
    command = [str(python_of(framework)), "-m", f"benchmarks.versus.adapters.{framework}", str(job.folder / "job.json")]
    with (job.folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=job.folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if os.waitstatus_to_exitcode(status):
        raise RunError(f"{framework}, {job.mode}: {_end(job)}")
    return used.ru_utime + used.ru_stime


def result(job: Job) -> dict[str, Any]:
    """What the adapter wrote."""
    return dict(json.loads((job.folder / "result.json").read_text()))


def with_mode(job: Job, mode: str) -> Job:
    """The same job in another mode, in a folder of its own."""
    return replace(job, mode=mode, out=f"{job.out}-{mode}")


def _end(job: Job) -> str:
    return (job.folder / "log.txt").read_text(errors="replace")[-1500:]

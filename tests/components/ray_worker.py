"""What Ray's workers run in test_ray_faults: the toy run, with the faults of a plan, stopped as a real stage is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray.train
import torch

from components.platform import workers
from components.train import worker
from model.training.ranks import Ranks, ending_together
from model.training.reporter import ListReporter
from tests.fault_plan import install
from tests.toy_run import finish, toy_training


def train(job: dict[str, Any]) -> None:
    """As `components.train.worker.train`, whose `_run` is the toy here."""
    torch.set_num_threads(1)
    if job["plan"]:
        install(Path(job["plan"]))
    worker._run = run
    worker.train(job)


def run(job: dict[str, Any], scratch: Path, leads: bool) -> None:
    """The toy run on all workers."""
    marks = Path(job["marks"])

    class Slow(ListReporter):
        def metrics(self, step: int, total: int, values: Any) -> None:
            time.sleep(job.get("pause", 0.0))
            if leads:
                with marks.open("a") as stream:
                    stream.write(f"{step} {time.time()}\n")

    @ending_together
    def go() -> str:
        ranks = Ranks.current(torch.device("cpu"), 60.0)
        stop = Path(job["stop"])
        training, _ = toy_training(scratch / "work", Slow(), lambda: workers.asked(stop), ranks)
        return finish(training)

    digest = go()
    if leads:
        Path(job["digest"]).write_text(digest)
    ray.train.report({"digest": digest})

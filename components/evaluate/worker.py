"""What runs in each Ray Train worker of an evaluation: its share of the questions (model/evaluation/sharing.py).

1. `evaluate(job)` asks what is its own; answers go to all workers as JSON, through the process group that Ray opened.
2. Rank 0 writes the report. A worker that fails, or is asked to stop, ends those that wait for it (`ending_together`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch

from components.evaluate.asking import ask
from components.evaluate.exchange import exchange
from components.platform.workers import asked, with_letters
from model.config import EvaluateSlice
from model.evaluation.sharing import Shard
from model.training.ranks import Ranks, ending_together


def evaluate(job: dict[str, Any]) -> None:
    """Be one worker of the evaluation that `job` describes (components/evaluate/asking.py)."""
    with_letters(job, lambda leads: _run(job))


@ending_together
def _run(job: dict[str, Any]) -> None:
    resources = EvaluateSlice.model_validate(job["piece"]).resources
    device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
    ranks, stop = Ranks.current(device, resources.stall_seconds), Path(job["stop"])
    ask(job, Shard(ranks.rank, ranks.world_size, partial(exchange, ranks)), lambda: asked(stop))
    ray.train.report({})

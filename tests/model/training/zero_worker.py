"""One of two workers of `test_zero`: runs every job of the list, and writes down how each ended."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from model.config import Strategy, TrainSlice
from model.errors import BiovlmError
from model.training import loop, zero
from model.training.loop import Micro, Objective, StepPlan
from model.training.objective import AnswerObjective
from model.training.optimizer import Group, Optimizer
from model.training.ranks import Ranks
from model.training.reporter import ListReporter
from model.training.resume import Store
from model.training.sharing import Replicated, Sharing
from model.training.stage import StageInputs, run_stage

ORIGINAL, PADDING = AnswerObjective.loss_sum, loop._padding


def main() -> None:
    plan, rank = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    zero.PERSISTENT_NUMEL = 0  # else everything here is small enough to stay whole
    meet = f"file://{plan['meet']}"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=500))
    given = StageInputs({"phantom": Path(plan["phantom"])}, {name: Path(path) for name, path in plan["bases"].items()})
    answers = {job["name"]: run(job, given, rank) for job in plan["jobs"]}
    answers["round trip"] = {level.value: round_trip(level, Path(plan["answers"]), rank) for level in zero.LEVELS}
    Path(plan["answers"], f"{rank}.json").write_text(json.dumps(answers))
    distributed.destroy_process_group()


def run(job: dict[str, Any], given: StageInputs, rank: int) -> dict[str, Any]:
    """One stage; a job can be stopped by rank 1 after two steps, or get a bad loss or gradient there."""
    reporter, root = ListReporter(), Path(job["root"])
    asked, passes = iter(range(1, 10**6)), iter(range(1, 10**6))
    padded = [0]

    def padding(objective: Objective, plan: StepPlan, num_passes: int) -> list[Micro]:
        made = PADDING(objective, plan, num_passes)
        padded[0] += len(made)
        return made

    def loss_sum(self: AnswerObjective, micro: Sequence[int]) -> torch.Tensor:
        loss = ORIGINAL(self, micro)
        if rank == 0 or next(passes) != job.get("bad_pass"):
            return loss
        return loss + (loss * 0.0).sqrt() if job["bad"] == "gradient" else loss * math.nan  # adds 0, and its slope is no number

    AnswerObjective.loss_sum = loss_sum  # type: ignore[method-assign]
    loop._padding = padding
    code, message = 0, ""
    try:
        stop = lambda: rank == 1 and next(asked) == job.get("stop_after")  # noqa: E731
        run_stage(TrainSlice.model_validate(job["piece"]), given, root / "work", root / "final", reporter, stop)
    except BiovlmError as error:
        code, message = int(error.exit_code), error.message
    message = message or " ".join(reporter.notes)
    return {
        "code": code,
        "message": message,
        "losses": [row["loss"] for row in reporter.rows if "loss" in row],
        "padded": padded[0],
    }


class Squares:
    """Sum of squares of what the network makes of ones."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def loss_sum(self, micro: Sequence[int]) -> torch.Tensor:
        return self.network(torch.ones(len(micro), 5)).square().sum()


def round_trip(level: Strategy, folder: Path, rank: int) -> dict[str, Any]:
    """Whether weights and moments of odd shapes, saved under DDP, are the same after loading and saving under ZeRO; and how many
    values of weights, frozen ones too, stand whole on this rank."""
    ranks, kept = Ranks.current(torch.device("cpu")), []
    for strategy in (Strategy.DDP, level):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3).requires_grad_(False))
        groups = [Group("part", 0.1, {name: weight for name, weight in network.named_parameters() if weight.requires_grad})]
        sharing: Sharing = (
            Replicated(Optimizer(groups), ranks)
            if strategy is Strategy.DDP
            else zero.Zero(strategy, [network], groups, (0.9, 0.999), 0.0, ranks.device, ranks)
        )
        store = Store(folder / f"{level}-round", {}, ranks, ListReporter())
        if not store.resume(sharing).step:
            sharing.backward(sharing.loss_sum(Squares(network), [0, 1]))
            sharing.move(torch.zeros(1), 1.0, 1e9)
            store.save(1, sharing)
            store.settle()
        weights, moments = sharing.state()
        kept.append({**weights, **moments})
    same = kept[0].keys() == kept[1].keys() and all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    return {"same": same or rank != 0, "whole": sum(weight.numel() for weight in network.parameters())}


if __name__ == "__main__":
    main()

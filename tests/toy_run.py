"""A run of the real loop on a network of a few dozen weights, with dropout: everything that a resumed run must bring back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from model.config import Guard, Schedule
from model.manifest import digest_of
from model.training.loop import Micro, Settings, StepPlan, Training, train
from model.training.optimizer import Group, Optimizer
from model.training.places import Place
from model.training.ranks import Ranks
from model.training.reporter import ListReporter, Reporter
from model.training.resume import Store
from model.training.sharing import Replicated, Sharing

EXAMPLES, STEPS = 16, 24


class Toy:
    """Fits a curve through sixteen points."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 1))
        self.inputs = torch.randn(EXAMPLES, 4)
        self.targets = self.inputs.sin().sum(1, keepdim=True)

    def num_targets(self, micro: Micro) -> int:
        return len(micro)

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        chosen = list(micro)
        return (self.network(self.inputs[chosen]) - self.targets[chosen]).square().sum()

    def names(self, micro: Micro) -> list[str]:
        return [f"record-{index}" for index in micro]

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        return {}


def toy_plan(world_size: int = 1, steps: int = STEPS) -> list[StepPlan]:
    """Two passes of two examples on each rank; every step holds the same examples for any number of ranks."""
    plan = []
    for number in range(steps):
        start = 4 * number % EXAMPLES
        micros = [tuple(range(start + offset, start + offset + 2)) for offset in (0, 2)]
        plan.append(tuple(tuple(micros[rank::world_size]) for rank in range(world_size)))
    return plan


def toy_training(
    work: Path | Place,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] | None = None,
    ranks: Ranks | None = None,
    sharing: Callable[[Toy, Sequence[Group], Ranks], Sharing] | None = None,
    every: int = 4,
    guard: Guard | None = None,
    steps: int = STEPS,
    width: int = 8,
) -> tuple[Training, Toy]:
    """The run, not begun; every argument but the first has a default."""
    ranks, reporter, toy = ranks or Ranks(), reporter or ListReporter(), Toy(width=width)
    groups = [Group("toy", 0.02, dict(toy.network.named_parameters()))]
    made = sharing(toy, groups, ranks) if sharing else Replicated(Optimizer(groups), ranks)
    torch.manual_seed(1_000 + ranks.rank)
    training = Training(
        objective=toy,
        plan=toy_plan(ranks.world_size, steps),
        sharing=made,
        settings=Settings(Schedule.COSINE, math.ceil(steps / 6), 1.0, every, guard or Guard()),
        store=Store(work, {"toy": 1}, ranks, reporter, ranks.patience_seconds / 2),
        reporter=reporter,
        ranks=ranks,
        stop=stop or (lambda: False),
    )
    return training, toy


def finish(training: Training) -> str:
    """Train to the end; the digest of weights, moments and random state."""
    done = train(training)
    weights, moments = training.sharing.state()
    values = {**weights, **moments, "random": torch.get_rng_state()}
    return digest_of({"skips": done.num_skips, **{name: values[name].detach().flatten().tolist() for name in sorted(values)}})

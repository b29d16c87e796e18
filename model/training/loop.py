"""The training loop: the only one. Stages and base models differ in the objective and the plan that they give it.

One optimizer step:
1. Every forward pass of this rank gives the sum of its losses; it is divided by the number of targets of the whole step over all
   passes and ranks, which each rank knows from the plan. So a target counts the same wherever it stands.
2. The strategy (sharing, zero) adds the gradients over the ranks. A message is added with them: the loss, the number of the first
   pass with a bad loss on each rank, and whether someone was asked to stop. So all ranks decide alike, in the same step.
3. The gradient is clipped and the optimizer moves; but a loss or gradient that is not finite ends the run before the weights change
   (DivergedError, exit 79).
4. The numbers are reported.
5. Every `checkpoint_every` steps, and when asked to stop, the state is saved; a stop then ends the run (PreemptedError, exit 75).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from model.config import Schedule
from model.errors import DivergedError, PreemptedError
from model.training.optimizer import factor
from model.training.ranks import Ranks
from model.training.reporter import Reporter
from model.training.resume import Store
from model.training.sharing import Sharing

Micro = Sequence[int]
"""Indices of the examples of one forward pass."""
StepPlan = Sequence[Sequence[Micro]]
"""For each rank its forward passes."""
NAMED_IDS = 8


class Objective(Protocol):
    """What is learned: examples by index, and the loss of a few of them."""

    def num_targets(self, micro: Micro) -> int:
        """How many terms `loss_sum` adds; known without computing it."""

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        """Scalar sum of the losses, with its graph."""

    def names(self, micro: Micro) -> Sequence[str]:
        """Ids of the records, for messages."""

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        """Further numbers of a step over all ranks; `tokens`, if given, is also reported as tokens a second."""


@dataclass(frozen=True)
class Settings:
    """How to train, beside what and on what."""

    schedule: Schedule
    warmup: int
    """Steps in which the learning rate rises."""
    clip_norm: float
    checkpoint_every: int


@dataclass(frozen=True)
class Training:
    """Everything the loop moves."""

    objective: Objective
    plan: Sequence[StepPlan]
    """All optimizer steps of the run; every rank holds the same plan."""
    sharing: Sharing
    settings: Settings
    store: Store
    reporter: Reporter
    ranks: Ranks
    stop: Callable[[], bool]
    """True once someone wants the run to end; asked once a step."""


def train(training: Training) -> float:
    """Run the plan from where its newest checkpoint stands to the end.

    Returns:
        Loss of the last step (mean over its targets); NaN if the checkpoint already stood at the end.

    Raises:
        DivergedError: A loss or gradient is not finite. PreemptedError: asked to stop; a checkpoint is saved.
        ConfigError, MissingInputError: see `Store.resume`. CannotWriteError: a checkpoint cannot be written.
    """
    total = len(training.plan)
    done = training.store.resume(training.sharing)
    if done:
        training.reporter.resumed(done)
    loss, clock = math.nan, time.perf_counter()
    for number in range(done, total):
        loss, norm, stopping = _step(training, number)
        finished, now = number + 1, time.perf_counter()
        _report(training, number, loss, norm, now - clock)
        clock = now
        stopping = stopping and finished < total  # the last step is not interrupted: what follows is as short as a checkpoint
        if stopping or (finished % training.settings.checkpoint_every == 0 and finished < total):
            training.store.save(finished, training.sharing)
        if stopping:
            raise PreemptedError(f"asked to stop; saved after step {finished} of {total}", "the same command goes on from there")
    return loss


def _step(training: Training, number: int) -> tuple[float, float, bool]:
    """One optimizer step: mean loss, norm of the gradient before clipping, and whether any rank was asked to stop."""
    plan, ranks = training.plan[number], training.ranks
    num_targets = max(1, sum(training.objective.num_targets(micro) for passes in plan for micro in passes))
    losses = _accumulate(training, plan, num_targets)
    message = _message(losses, num_targets, training.stop(), ranks)
    (loss, stopping, *bad_passes), length = training.sharing.move(message, _share(training, number), training.settings.clip_norm)
    if not (math.isfinite(loss) and math.isfinite(length)):
        raise _diverged(training, number, loss, length, [int(first) for first in bad_passes])
    return loss, length, stopping > 0


def _accumulate(training: Training, plan: StepPlan, num_targets: int) -> torch.Tensor:
    """Gradients of this rank's passes, added up by the strategy; the sums of losses, one a pass."""
    objective, sharing, own = training.objective, training.sharing, plan[training.ranks.rank]
    losses = []
    for micro in own:
        loss = sharing.loss_sum(objective, micro)
        sharing.backward(loss / num_targets)
        losses.append(loss.detach().float())
    for micro in _padding(objective, plan, len(own)) if sharing.even else ():
        sharing.backward(sharing.loss_sum(objective, micro) * 0.0)
    return torch.stack(losses) if losses else torch.zeros(0)


def _padding(objective: Objective, plan: StepPlan, num_passes: int) -> list[Micro]:
    """Passes that make up for those that another rank has more.

    Workers that share out weights or gradients meet in every pass: one that had finished would leave the others waiting for ever.
    So it goes on with an example of this step whose loss counts nothing, the one with the fewest targets.
    """
    spare = min(
        (index for passes in plan for micro in passes for index in micro), key=lambda index: objective.num_targets([index])
    )
    return [[spare]] * (max(map(len, plan)) - num_passes)


def _message(losses: torch.Tensor, num_targets: int, stop: bool, ranks: Ranks) -> torch.Tensor:
    """(2 + ranks,): loss, stop, and at this rank's place the number (from 1) of its first pass with a bad loss, or 0."""
    bad = (~torch.isfinite(losses)).nonzero()
    message = torch.zeros(2 + ranks.world_size, dtype=torch.float32, device=losses.device)
    message[0] = losses.sum() / num_targets
    message[1] = float(stop)
    message[2 + ranks.rank] = float(bad[0, 0]) + 1 if len(bad) else 0.0
    return message


def _share(training: Training, number: int) -> float:
    return factor(number, len(training.plan), training.settings.warmup, training.settings.schedule)


def _report(training: Training, number: int, loss: float, norm: float, seconds: float) -> None:
    values = {"loss": loss, "gradient_norm": norm}
    values |= {f"learning_rate/{name}": rate for name, rate in training.sharing.rates(_share(training, number)).items()}
    measures = dict(training.objective.measures(training.plan[number]))
    if "tokens" in measures:
        values["tokens_per_second"] = measures["tokens"] / max(seconds, 1e-9)
    training.reporter.metrics(number + 1, len(training.plan), {**values, **measures})


def _diverged(training: Training, number: int, loss: float, norm: float, bad_passes: Sequence[int]) -> DivergedError:
    """The letter; `bad_passes` holds for each rank the number (from 1) of its first pass with a bad loss, or 0."""
    plan = training.plan[number]
    micros = [plan[rank][first - 1] for rank, first in enumerate(bad_passes) if first]
    suspects = micros or [micro for passes in plan for micro in passes]
    ids = sorted({name for micro in suspects for name in training.objective.names(micro)})
    more = f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else ""
    what = f"the loss is {loss}" if micros else f"the loss is {loss:.4g} and the norm of its gradient {norm}"
    return DivergedError(
        f"step {number + 1} of {len(training.plan)}: {what}; records {', '.join(ids[:NAMED_IDS])}{more}; no weight was changed",
        "lower the learning rate or lengthen the warm-up; look at these records; the last checkpoint is good",
    )

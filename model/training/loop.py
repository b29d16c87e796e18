"""The training loop: the only one. Stages and base models differ in the objective and the plan that they give it.

One optimizer step:
1. Every forward pass of this rank gives the sum of its losses; it is divided by the number of targets of the whole step over all
   passes and ranks, which each rank knows from the plan. So a target counts the same wherever it stands.
2. Gradients are added over the ranks. The same message carries the loss, the number of the first pass with a bad loss on each rank,
   and whether someone was asked to stop: all ranks decide alike, in the same step.
3. A loss or gradient that is not finite ends the run before the weights change (DivergedError, exit 79).
4. The gradient is clipped, the optimizer moves, the numbers are reported.
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
from model.training.optimizer import Optimizer, factor
from model.training.ranks import Ranks
from model.training.reporter import Reporter
from model.training.resume import Store

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
    optimizer: Optimizer
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
    done = training.store.resume(training.optimizer)
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
            training.store.save(finished, training.optimizer)
        if stopping:
            raise PreemptedError(f"asked to stop; saved after step {finished} of {total}", "the same command goes on from there")
    return loss


def _step(training: Training, number: int) -> tuple[float, float, bool]:
    """One optimizer step: mean loss, norm of the gradient before clipping, and whether any rank was asked to stop."""
    plan, ranks, optimizer = training.plan[number], training.ranks, training.optimizer
    num_targets = max(1, sum(training.objective.num_targets(micro) for passes in plan for micro in passes))
    losses = _accumulate(training.objective, plan[ranks.rank], num_targets)
    gradients = [weight.grad for weight in optimizer.weights.values() if weight.grad is not None]
    tail = _sum_gradients(gradients, _tail(losses, num_targets, training.stop(), ranks).to(gradients[0].device), ranks)
    norm = torch.nn.utils.get_total_norm(gradients)
    loss, stopping, *bad_passes, length = torch.cat([tail, norm.reshape(1).to(tail)]).tolist()
    if not (math.isfinite(loss) and math.isfinite(length)):
        raise _diverged(training, number, loss, length, [int(first) for first in bad_passes])
    torch.nn.utils.clip_grads_with_norm_(optimizer.weights.values(), training.settings.clip_norm, norm)
    optimizer.apply(_share(training, number))
    return loss, length, stopping > 0


def _accumulate(objective: Objective, passes: Sequence[Micro], num_targets: int) -> torch.Tensor:
    """Gradients of this rank's passes, added into the weights; the sums of losses, one a pass."""
    losses = []
    for micro in passes:
        loss = objective.loss_sum(micro)
        if loss.requires_grad:  # a pass without images has no path to the connector
            (loss / num_targets).backward()
        losses.append(loss.detach().float())
    return torch.stack(losses) if losses else torch.zeros(0)


def _tail(losses: torch.Tensor, num_targets: int, stop: bool, ranks: Ranks) -> torch.Tensor:
    """(2 + ranks,): loss, stop, and at this rank's place the number (from 1) of its first pass with a bad loss, or 0."""
    bad = (~torch.isfinite(losses)).nonzero()
    tail = torch.zeros(2 + ranks.world_size, dtype=torch.float32, device=losses.device)
    tail[0] = losses.sum() / num_targets
    tail[1] = float(stop)
    tail[2 + ranks.rank] = float(bad[0, 0]) + 1 if len(bad) else 0.0
    return tail


def _sum_gradients(gradients: Sequence[torch.Tensor], tail: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Add gradients over the ranks in place, and the tail with them, in one message."""
    if ranks.world_size == 1:
        return tail
    flat = ranks.sum(torch.cat([gradient.reshape(-1).float() for gradient in gradients] + [tail]))
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return flat[start:]


def _share(training: Training, number: int) -> float:
    return factor(number, len(training.plan), training.settings.warmup, training.settings.schedule)


def _report(training: Training, number: int, loss: float, norm: float, seconds: float) -> None:
    values = {"loss": loss, "gradient_norm": norm}
    values |= {f"learning_rate/{name}": rate for name, rate in training.optimizer.rates(_share(training, number)).items()}
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

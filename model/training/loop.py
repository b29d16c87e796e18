"""The training loop: the only one. Stages and base models differ in the objective and the plan that they give it.

One optimizer step:
1. Every forward pass of this rank gives the sum of its losses; it is divided by the number of targets of the whole step over all
   passes and ranks, which each rank knows from the plan. So a target counts the same wherever it stands.
2. The strategy (sharing, zero) adds the gradients over the ranks. A message is added with them: the loss, the number of the first
   pass with a bad loss on each rank, whether someone was asked to stop, and whether a checkpoint could not be written. So all ranks
   decide alike, in the same step.
3. The gradient is clipped and the optimizer moves; but a step whose loss or gradient is not finite, or whose loss is a spike (judge),
   is not taken: no weight and no moment changes. It is counted, and told with the ids of its records.
4. After too many of those, all ranks go back to the last calm checkpoint and from there round the data of those steps, once; the
   second time the run ends (DivergedError, exit 79).
5. The numbers are reported.
6. Every `checkpoint_every` steps, and when asked to stop, the state is copied and written while the steps go on (resume); before that,
   and every `compare_every` steps, workers with equal weights compare them. A stop waits for the checkpoint and ends the run
   (PreemptedError, exit 75). A checkpoint that could not be written ends it with its own letter.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from model.config import Guard, Schedule
from model.errors import DivergedError, PreemptedError
from model.training.judge import Judge, Skip, Verdict
from model.training.optimizer import factor
from model.training.ranks import Ranks
from model.training.reporter import Reporter
from model.training.resume import Store
from model.training.sharing import Sharing
from model.training.watchdog import PATIENCE, Watchdog

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
    guard: Guard = field(default_factory=Guard)


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
    expect: Callable[[Sequence[Micro]], None] = lambda passes: None
    """Hears which passes come next on this rank, so that their batches can be made ahead."""


@dataclass(frozen=True)
class Outcome:
    """How a step went, the same on every rank."""

    loss: float
    """Mean over the targets."""
    norm: float
    """Of the gradient before clipping; NaN if it was not needed."""
    stopping: bool
    """A rank was asked to stop."""
    failing: bool
    """A checkpoint could not be written."""
    suspects: list[int]
    """Examples of the first passes with bad losses; else of all the step."""


class Finished(NamedTuple):
    """What there is to say about a run at its end."""

    loss: float
    """Of the last step, mean over its targets; NaN if the checkpoint already stood at the end."""
    num_skips: int
    """Steps that were not taken."""
    jumped: list[int]
    """[first, end) of the plan's steps that were gone round after a rollback; empty if there was none."""


def train(training: Training) -> Finished:
    """Run the plan from where its newest checkpoint stands to the end.

    Raises:
        DivergedError: Too many steps could not be taken, or the workers' weights differ. PreemptedError: asked to stop; a checkpoint
        is saved. ConfigError, MissingInputError: see `Store.resume`. CannotWriteError: a checkpoint cannot be written.
        InternalError: A worker or the store does not answer.
    """
    with (
        contextlib.closing(training.store),
        Watchdog(PATIENCE * training.ranks.patience_seconds, training.ranks.tell) as watchdog,
    ):
        return _Run(training, watchdog.beat).to_the_end()


class _Run:
    """What changes while the plan is run: the position and the judge's memory."""

    def __init__(self, training: Training, beat: Callable[[], None]) -> None:
        self._training, self._beat = training, beat
        resumed = training.store.resume(training.sharing)
        self._number = resumed.step
        self._judge = Judge(training.settings.guard, resumed.journal.get("judge"))
        if resumed.step:
            training.reporter.resumed(resumed.step)

    def to_the_end(self) -> Finished:
        """Step by step."""
        training, total = self._training, len(self._training.plan)
        loss, clock = math.nan, time.perf_counter()
        while (number := self._judge.behind(self._number)) < total:
            self._beat()
            outcome = _step(training, number, self._judge, self._beat)
            training.store.catch_up()
            if outcome.failing:
                training.store.settle()  # raises, on every rank
            loss, now = outcome.loss, time.perf_counter()
            verdict = self._judge.record(number, outcome.loss, outcome.norm, outcome.suspects)
            self._tell(number, verdict)
            _report(training, number, outcome, self._judge.num_skips, now - clock)
            clock = now
            if verdict is Verdict.ROLL_BACK:
                self._roll_back(number)
            else:
                self._number = number + 1
                self._keep(outcome.stopping)
        _compare(training, total)
        training.store.settle()
        return Finished(loss, self._judge.num_skips, self._judge.jumped)

    def _keep(self, stopping: bool) -> None:
        """Save where it is time to, and end where somebody wants it."""
        training, finished, total = self._training, self._number, len(self._training.plan)
        stopping = stopping and finished < total  # the last step is not interrupted: what follows is as short as a checkpoint
        saving = stopping or (finished % training.settings.checkpoint_every == 0 and finished < total)
        if saving or finished % training.settings.guard.compare_every == 0:
            _compare(training, finished)
        if saving:
            calm = not self._judge.recent(finished)
            training.store.save(finished, training.sharing, {"judge": self._judge.state()}, calm)
        if stopping:
            training.store.settle()
            raise PreemptedError(f"asked to stop; saved after step {finished} of {total}", "the same command goes on from there")

    def _tell(self, number: int, verdict: Verdict) -> None:
        """A note about a step that was not taken, or a slow rise; DivergedError where the judge gives up."""
        training, guard, total = self._training, self._training.settings.guard, len(self._training.plan)
        if verdict is Verdict.TAKEN:
            if self._judge.drifting(number):
                training.reporter.note(f"step {number + 1} of {total}: the loss has been rising for {guard.window} steps")
            return
        skips = self._judge.last_skips
        if verdict is Verdict.GIVE_UP:
            raise _diverged(training, skips, "training has already gone round one stretch of data")
        training.reporter.note(
            f"step {number + 1} of {total} not taken: {skips[-1].why}; {_records(training, skips[-1:])}; "
            f"{len(skips)} not taken within {guard.skip_window} steps, {guard.max_skips} are allowed"
        )

    def _roll_back(self, number: int) -> None:
        """Go on from the last calm checkpoint, round the data of all steps from the first bad one to `number`."""
        training, skips = self._training, self._judge.last_skips
        first = skips[0].number
        resumed = training.store.back_to(first, training.sharing)
        if not resumed.step:
            raise _diverged(training, skips, "there is no checkpoint from before them")
        num_skips = self._judge.num_skips
        self._number = resumed.step
        self._judge = Judge(training.settings.guard, resumed.journal.get("judge"))
        self._judge.num_skips = num_skips
        self._judge.jump(first, number + 1)
        training.reporter.note(
            f"back after step {resumed.step}; steps {first + 1} to {number + 1} of {len(training.plan)} are left out from now on: "
            f"{_records(training, skips)}"
        )


def _step(training: Training, number: int, judge: Judge, beat: Callable[[], None]) -> Outcome:
    """One optimizer step, or its refusal."""
    plan, ranks = training.plan[number], training.ranks
    num_targets = max(1, sum(training.objective.num_targets(micro) for passes in plan for micro in passes))
    training.expect([micro for step in training.plan[number : number + 2] for micro in step[ranks.rank]])
    losses = _accumulate(training, plan, num_targets, beat)
    message = _message(losses, num_targets, training.stop(), training.store.failing, ranks)
    values, norm = training.sharing.move(
        message, _share(training, number), training.settings.clip_norm, lambda loss: not judge.objection(loss)
    )
    loss, stopping, failing, *bad_passes = values
    micros = [plan[rank][int(first) - 1] for rank, first in enumerate(bad_passes) if first]
    suspects = sorted({index for micro in micros or [micro for passes in plan for micro in passes] for index in micro})
    taken = not judge.objection(loss) and math.isfinite(norm)
    return Outcome(loss, norm, stopping > 0, failing > 0, [] if taken else suspects[:NAMED_IDS])


def _accumulate(training: Training, plan: StepPlan, num_targets: int, beat: Callable[[], None]) -> torch.Tensor:
    """Gradients of this rank's passes, added up by the strategy; the sums of losses, one a pass."""
    objective, sharing, own = training.objective, training.sharing, plan[training.ranks.rank]
    losses = []
    for micro in own:
        beat()
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


def _message(losses: torch.Tensor, num_targets: int, stop: bool, failing: bool, ranks: Ranks) -> torch.Tensor:
    """(3 + ranks,): loss, stop, failure, and at this rank's place the number (from 1) of its first pass with a bad loss, or 0."""
    bad = (~torch.isfinite(losses)).nonzero()
    message = torch.zeros(3 + ranks.world_size, dtype=torch.float32, device=losses.device)
    message[0] = losses.sum() / num_targets
    message[1] = float(stop)
    message[2] = float(failing)
    message[3 + ranks.rank] = float(bad[0, 0]) + 1 if len(bad) else 0.0
    return message


def _compare(training: Training, finished: int) -> None:
    """DivergedError if workers that must hold equal weights and moments do not: a bit flipped in the memory of one of them."""
    own = training.sharing.fingerprint() if training.ranks.world_size > 1 else None
    if own is None:
        return
    found = [int(value) for value in training.ranks.gather(own)]
    odd = [rank for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise DivergedError(
            f"after step {finished} of {len(training.plan)} the weights or moments of rank {', '.join(map(str, odd))} differ from "
            "those of rank 0, and they must be equal to the bit",
            "the memory of one of these machines is not to be trusted; replace it, then the same command goes on from the last "
            "checkpoint, before which all were equal",
        )


def _share(training: Training, number: int) -> float:
    return factor(number, len(training.plan), training.settings.warmup, training.settings.schedule)


def _report(training: Training, number: int, outcome: Outcome, num_skips: int, seconds: float) -> None:
    """Numbers of the step; what is not finite is left out."""
    values = {"loss": outcome.loss, "gradient_norm": outcome.norm, "checkpoint_age_seconds": training.store.age_seconds}
    values |= {f"learning_rate/{name}": rate for name, rate in training.sharing.rates(_share(training, number)).items()}
    if num_skips:
        values["skipped_steps"] = float(num_skips)
    measures = dict(training.objective.measures(training.plan[number]))
    if "tokens" in measures:
        values["tokens_per_second"] = measures["tokens"] / max(seconds, 1e-9)
    finite = {name: value for name, value in {**values, **measures}.items() if math.isfinite(value)}
    training.reporter.metrics(number + 1, len(training.plan), finite)


def _records(training: Training, skips: Sequence[Skip]) -> str:
    """Ids of the records in question, the newest steps first."""
    indices = dict.fromkeys(index for skip in reversed(skips) for index in skip.suspects)
    ids = list(dict.fromkeys(name for index in indices for name in training.objective.names([index])))
    more = f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else ""
    return f"records {', '.join(ids[:NAMED_IDS])}{more}"


def _diverged(training: Training, skips: Sequence[Skip], why: str) -> DivergedError:
    """The letter of a run that gives up."""
    steps = ", ".join(str(skip.number + 1) for skip in skips[-NAMED_IDS:])
    return DivergedError(
        f"step {skips[-1].number + 1} of {len(training.plan)}: {skips[-1].why}; {_records(training, skips)}; {len(skips)} steps not "
        f"taken ({steps}) and {why}; no weight was changed by them",
        "lower the learning rate or lengthen the warm-up; look at these records; the last checkpoint is good",
    )

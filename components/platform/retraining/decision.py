"""Train again, or not: a pure function of policy, facts, clock and history that gives every reason.

1. Is it time? A moment of the cron expression lies between the last look and now; or the schedule itself asks.
2. Is there a reason? What a training would be made of now (`Made`) is compared with what the last one was made of; each difference
   counts, or does not, as the policy says. Nothing differs: *unchanged*.
3. Does something stand against it? The cool-down, the budget, or that the same was tried and cannot succeed.

The verdict is `run` if it is time, a reason counts and nothing stands against it. The reasons are told in all cases.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from pydantic import Field

from components.platform.retraining.drift import Shift
from components.platform.retraining.feedback import Feedback
from components.platform.retraining.policy import CodeReason, Policy, UnknownCost
from model.config.choices import Strict
from model.errors import NEVER_RETRIED, ExitCode
from model.manifest import digest_of

BUDGET_DAYS = 30
MOST_TRIES = 3
"""How often the same training is begun, if it ends without success and nobody says why."""
SHOWN = 12
"""Hex digits of a digest that a reader sees."""


class Made(Strict):
    """What a training is made of, by digest: equal ones have equal keys."""

    data: dict[str, str] = Field(default_factory=dict, description="Data set -> digest.")
    bases: dict[str, str] = Field(default_factory=dict, description="Base model of the registry -> digest.")
    recipe: dict[str, str] = Field(default_factory=dict, description="Stage -> digest of what the recipe says about it.")
    code: str = Field(default="", description="Digest of the code that trains.")

    @property
    def digest(self) -> str:
        """Its name: 64 hex digits."""
        return digest_of(self.model_dump())


class Basis(Strict):
    """The last training that made a version."""

    version: str
    made: Made
    created: datetime.datetime
    revisions: dict[str, str] = Field(default_factory=dict, description="Data set -> revision that was trained on.")


class CodeState(Strict):
    """Where the code of this machine comes from."""

    commit: str = "unknown"
    dirty: bool = True
    tags: tuple[str, ...] = Field(default=(), description="Release tags of the commit.")


class Facts(Strict):
    """Everything that a decision looks at but clock and history."""

    now: Made
    basis: Basis | None
    code: CodeState = CodeState()
    shifts: tuple[Shift, ...] = Field(default=(), description="Of the data sets whose version changed.")
    feedback: Feedback = Feedback()
    counted: Feedback = Field(default=Feedback(), description="At the last training that began.")
    gpu_hours: float | None = Field(default=0.0, description="Estimate of a run from the beginning; empty: not known.")
    asked_by_schedule: bool = Field(default=False, description="The server's own clock asks: it is time.")


class Verdict(StrEnum):
    """What to do now."""

    RUN = "run"
    SKIP = "skip"


class Effect(StrEnum):
    """What a reason does."""

    FOR = "for"
    AGAINST = "against"
    NOTE = "note"
    """Neither: a change that the policy does not count, for instance."""


class Reason(Strict):
    """One sentence of a decision."""

    check: str
    effect: Effect
    text: str


class Entry(Strict):
    """One look, as the history keeps it (journal.py)."""

    number: int
    time: datetime.datetime
    verdict: Verdict
    made: str = Field(description="Digest of `Made`.")
    gpu_hours: float = 0.0
    feedback: Feedback = Feedback()
    run_id: str = ""
    exit_code: int | None = Field(default=None, description="How the training ended; empty: it did not, as far as anyone knows.")
    reasons: tuple[Reason, ...] = ()


class Decision(Strict):
    """What to do, and why."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    unchanged: bool = Field(description="Nothing differs from the last training.")
    due: bool = Field(description="It is time to look.")
    goes_on: bool = Field(description="The training that would run was begun before, and broke off.")

    @property
    def summary(self) -> str:
        """The verdict and what decided it, in one line."""
        decisive = Effect.FOR if self.verdict is Verdict.RUN else Effect.AGAINST
        return f"{self.verdict}: {'; '.join(reason.text for reason in self.reasons if reason.effect is decisive)}"


def decide(
    policy: Policy, facts: Facts, now: datetime.datetime, history: Sequence[Entry], last_moment: datetime.datetime | None
) -> Decision:
    """Train again, or not.

    Args:
        policy: What the team wants.
        facts: What is the case.
        now: The clock, with its zone.
        history: Looks of this policy, oldest first.
        last_moment: The newest moment up to `now` that the policy's cron expression names, if it ever named one.
    """
    changes = list(_changes(policy, facts))
    due = facts.asked_by_schedule or not history or (last_moment is not None and last_moment > history[-1].time)
    broken = _broken_off(facts, history) if changes else None
    reasons = [*changes, *(_obstacles(policy, facts, now, history, broken) if changes else ())]
    if not changes:
        reasons.append(Reason(check="unchanged", effect=Effect.AGAINST, text=_unchanged(facts)))
    elif not any(reason.effect is Effect.FOR for reason in changes):
        reasons.append(
            Reason(check="no_reason", effect=Effect.AGAINST, text="nothing changed that this policy counts as a reason")
        )
    if not due:
        last = f"{history[-1].time:%Y-%m-%d %H:%M %Z}"
        reasons.append(
            Reason(check="when", effect=Effect.AGAINST, text=f"it is not time: {policy.when.cron!r} has not come since {last}")
        )
    against = any(reason.effect is Effect.AGAINST for reason in reasons)
    return Decision(
        verdict=Verdict.SKIP if against else Verdict.RUN,
        reasons=tuple(reasons),
        unchanged=not changes,
        due=due,
        goes_on=broken is not None and not against,
    )


def _unchanged(facts: Facts) -> str:
    assert facts.basis is not None, "without a training before, that is a reason by itself"
    return f"unchanged: data, base models, recipe and code are those of version {facts.basis.version} of {facts.basis.created:%Y-%m-%d}"


def _changes(policy: Policy, facts: Facts) -> Iterator[Reason]:
    """A reason for everything that differs from the last training."""
    if facts.basis is None:
        yield Reason(check="first", effect=Effect.FOR, text="nothing was trained by this recipe yet")
        return
    before, now, on = facts.basis.made, facts.now, policy.because
    yield from _differences("data", "data set", before.data, now.data, on.data_version)
    for shift in facts.shifts:
        if on.drift and shift.drifted(on.drift.above, on.drift.chance):
            yield Reason(check="drift", effect=Effect.FOR, text=_shifted(shift, on.drift.above))
    yield from _differences("base_model", "base model", before.bases, now.bases, on.base_model)
    stages = [stage for stage in now.recipe if before.recipe.get(stage) != now.recipe[stage]]
    if stages:
        yield Reason(check="recipe", effect=_effect(on.recipe), text=f"the recipe says something else about {', '.join(stages)}")
    if before.code != now.code:
        yield _code(policy, facts)
    new = facts.feedback.lines - facts.counted.lines
    if on.feedback and new > 0:
        enough = new >= on.feedback.at_least
        yield Reason(check="feedback", effect=_effect(enough), text=f"{new} new corrections, {on.feedback.at_least} are a reason")


def _differences(check: str, what: str, before: Mapping[str, str], now: Mapping[str, str], counts: bool) -> Iterator[Reason]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            old, new = (table.get(name, "none")[:SHOWN] for table in (before, now))
            yield Reason(check=check, effect=_effect(counts), text=f"{what} {name}: {old} -> {new}")


def _shifted(shift: Shift, above: float) -> str:
    return (
        f"{shift.data_set}: the mix of {shift.variable} moved by {shift.index:.2f} (population stability index; above {above:g}), by "
        f"chance with a probability of {shift.chance:.1g}; {shift.before:,} records before, {shift.now:,} now"
    )


def _code(policy: Policy, facts: Facts) -> Reason:
    wanted, state = policy.because.code, facts.code
    commit = f"the code that trains changed, commit {state.commit[:SHOWN]}"
    if wanted is CodeReason.RELEASE_TAG:
        released = bool(state.tags) and not state.dirty
        why = (
            f"release {', '.join(state.tags)}" if released else "with changes that no commit has" if state.dirty else "no release"
        )
        return Reason(check="code", effect=_effect(released), text=f"{commit}: {why}")
    return Reason(check="code", effect=_effect(wanted is CodeReason.ANY), text=commit)


def _effect(counts: bool) -> Effect:
    return Effect.FOR if counts else Effect.NOTE


def _obstacles(
    policy: Policy, facts: Facts, now: datetime.datetime, history: Sequence[Entry], broken: Entry | None
) -> Iterator[Reason]:
    """What stands against a training, reason or not."""
    begun = [entry for entry in history if entry.verdict is Verdict.RUN]
    same = [entry for entry in begun if entry.made == facts.now.digest]
    if same and same[-1].exit_code == ExitCode.DONE:
        yield Reason(check="tried", effect=Effect.AGAINST, text=f"the same was trained on {same[-1].time:%Y-%m-%d}")
    elif same and same[-1].exit_code in NEVER_RETRIED:
        text = (
            f"the same was tried on {same[-1].time:%Y-%m-%d} and ended with {same[-1].exit_code}, which another try cannot change"
        )
        yield Reason(check="tried", effect=Effect.AGAINST, text=text)
    elif broken is not None and len(same) >= MOST_TRIES:
        yield Reason(
            check="tried",
            effect=Effect.AGAINST,
            text=f"the same was begun {len(same)} times without success; look at {broken.run_id}",
        )
    elif broken is not None:
        yield Reason(
            check="goes_on", effect=Effect.NOTE, text=f"the training of {broken.time:%Y-%m-%d} broke off and would go on"
        )
        return  # its cost was counted when it began
    if begun and (ready := begun[-1].time + datetime.timedelta(days=policy.cool_down_days)) > now:
        text = f"cool-down: the last training began on {begun[-1].time:%Y-%m-%d}, the next may from {ready:%Y-%m-%d %H:%M %Z} on"
        yield Reason(check="cool_down", effect=Effect.AGAINST, text=text)
    yield from _budget(policy, facts.gpu_hours, now, begun)


def _budget(policy: Policy, cost: float | None, now: datetime.datetime, begun: Sequence[Entry]) -> Iterator[Reason]:
    budget = policy.budget
    if cost is None:
        against = budget.if_unknown is UnknownCost.SKIP
        text = "the cost is not known: the data registry or a base model's config is not on this machine"
        yield Reason(check="budget", effect=Effect.AGAINST if against else Effect.NOTE, text=text)
        return
    if cost > budget.gpu_hours:
        text = f"a run is thought to cost {cost:,.1f} GPU hours, the budget is {budget.gpu_hours:g}"
        yield Reason(check="budget", effect=Effect.AGAINST, text=text)
    since = now - datetime.timedelta(days=BUDGET_DAYS)
    spent = sum(entry.gpu_hours for entry in begun if entry.time > since)
    most = budget.gpu_hours_in_30_days
    if most is not None and spent + cost > most:
        begun_for = f"{spent:,.1f} GPU hours were begun in {BUDGET_DAYS} days"
        text = f"{begun_for}, a run is thought to cost {cost:,.1f}, the budget is {most:g}"
        yield Reason(check="budget", effect=Effect.AGAINST, text=text)


def _broken_off(facts: Facts, history: Sequence[Entry]) -> Entry | None:
    """The last training that began, if it was of the same and has not ended well or for good."""
    last = next((entry for entry in reversed(history) if entry.verdict is Verdict.RUN), None)
    if last is None or last.made != facts.now.digest or last.exit_code in {ExitCode.DONE, *NEVER_RETRIED}:
        return None
    return last

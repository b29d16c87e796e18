"""What a decision consists of: checks, each with value, limit and outcome, and the verdict that follows from them.

A check that did not pass says in which way, and `verdict_of` reads the verdict off:

1. `refusal`: the question itself is wrong (other items, a forbidden licence, a gate that nobody approved). hold; the promote step
   ends with exit 77, since no further data would make it right.
2. `failed`: a number is missing, not finite, out of range, or beyond its limit. hold.
3. `undecided`: the items do not say enough. not_enough_data, unless something failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.evaluation.results import Item, Report


class Verdict(StrEnum):
    """What is done with a candidate."""

    PROMOTE = "promote"
    """Every check passed."""
    HOLD = "hold"
    """A check failed."""
    NOT_ENOUGH_DATA = "not_enough_data"
    """The items do not say enough, and nothing else is wrong with the report."""


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    REFUSAL = "refusal"


@dataclass(frozen=True)
class Reason:
    """One check."""

    check: str
    passed: bool
    message: str
    """In words, without content of records."""
    value: float | None = None
    """What was found; None if it is missing or not a finite number."""
    limit: float | None = None
    outcome: str = ""
    """An `Outcome`."""


@dataclass(frozen=True)
class Decision:
    """A verdict with all its checks."""

    verdict: Verdict
    reasons: tuple[Reason, ...]

    @property
    def failed(self) -> tuple[Reason, ...]:
        """The checks that did not pass."""
        return tuple(reason for reason in self.reasons if not reason.passed)

    @property
    def refusals(self) -> tuple[Reason, ...]:
        """The checks for which nothing can be decided, whatever the numbers say."""
        return tuple(reason for reason in self.reasons if reason.outcome == Outcome.REFUSAL)


@dataclass(frozen=True)
class Evidence:
    """A report with its items, both from the signed artifact."""

    report: Report
    items: Sequence[Item]


def reason(check: str, outcome: Outcome, message: str, value: float | None = None, limit: float | None = None) -> Reason:
    """A check that ended so."""
    return Reason(check, outcome is Outcome.PASSED, message, value, limit, str(outcome))


def passed_or(bad: Outcome, good: bool) -> Outcome:
    """`bad`, unless the check is good."""
    return Outcome.PASSED if good else bad


def verdict_of(reasons: Sequence[Reason]) -> Verdict:
    """The verdict of these checks; see the module's numbered list. Without any check nothing is promoted."""
    outcomes = {reason.outcome for reason in reasons}
    if not outcomes <= {str(one) for one in Outcome} or not outcomes or outcomes & {Outcome.REFUSAL, Outcome.FAILED}:
        return Verdict.HOLD
    return Verdict.NOT_ENOUGH_DATA if Outcome.UNDECIDED in outcomes else Verdict.PROMOTE


def wrong(value: float | None, lowest: float) -> str | None:
    """What is wrong with a number that must lie in lowest..1, or None."""
    if value is None:
        return "is missing"
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "is not a finite number"
    if not lowest <= value <= 1:
        return f"is {value:g}, outside {lowest:g}..1: numbers are shares, not percent"
    return None

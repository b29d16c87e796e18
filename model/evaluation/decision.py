"""Whether a candidate becomes the champion: pure, from two reports and their items.

The first benchmark of the report decides. In order:
1. Every number that is looked at must be there, finite and a share (0.9, not 90). What is missing or wrong fails by name.
2. With fewer closed items than `min_items` (open ones too, if open recall has a threshold) the verdict is `not_enough_data`.
3. Closed accuracy (strict) and open recall must reach their thresholds; the lower end of the image gain's interval must be *above*
   its own: a model that does not look is not promoted.
4. If there is a champion, it must have answered the same items of the same benchmark, and the candidate's closed accuracy may be at
   most `max_loss_to_champion` lower (mean of the paired differences; its bootstrap interval by group is recorded beside it).

Each check is a `Reason` with value, limit and whether it passed. All that fails is named, not only the first. Raising a score of the
candidate can turn hold into promote and never promote into hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.config import Promotion
from model.evaluation.bootstrap import Draws
from model.evaluation.results import BenchmarkResult, Item, Report

METRIC = "closed_accuracy"
ROUNDING = 1e-9
"""Differences of means carry rounding errors of about 1e-16; 0.81 against 0.80 + 0.01 must not fail by one of them."""


class Verdict(StrEnum):
    """What is done with a candidate."""

    PROMOTE = "promote"
    """Every check passed."""
    HOLD = "hold"
    """A check failed."""
    NOT_ENOUGH_DATA = "not_enough_data"
    """Too few items to say anything, and nothing else is wrong with the report."""


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


@dataclass(frozen=True)
class Decision:
    """A verdict with all its checks."""

    verdict: Verdict
    reasons: tuple[Reason, ...]

    @property
    def failed(self) -> tuple[Reason, ...]:
        """The checks that did not pass."""
        return tuple(reason for reason in self.reasons if not reason.passed)


def decide(
    promotion: Promotion,
    candidate: Report,
    champion: Report | None = None,
    candidate_items: Sequence[Item] = (),
    champion_items: Sequence[Item] = (),
) -> Decision:
    """Promote, hold, or not enough data.

    Args:
        promotion: Thresholds of the recipe.
        candidate: Report of the candidate.
        champion: Report of the present champion on the same items; None if there is no champion.
        candidate_items: Items of the candidate's report; needed with a champion.
        champion_items: Items of the champion's report.
    """
    if not candidate.benchmarks:
        return Decision(Verdict.HOLD, (Reason("benchmark", False, "the report holds no benchmark"),))
    result = candidate.benchmarks[0]
    counts = _counts(promotion, result)
    reasons = [*counts, *_thresholds(promotion, result), _gain(promotion, result)]
    if champion is None:
        reasons.append(Reason("champion", True, "there is no champion to compare with"))
    else:
        reasons += _against(promotion, candidate, champion, candidate_items, champion_items)
    if any(not reason.passed and reason.value is None for reason in reasons):
        verdict = Verdict.HOLD  # missing, not finite or not comparable: more data would not help
    elif any(not reason.passed for reason in counts):
        verdict = Verdict.NOT_ENOUGH_DATA
    else:
        verdict = Verdict.PROMOTE if all(reason.passed for reason in reasons) else Verdict.HOLD
    return Decision(verdict, tuple(reasons))


def _counts(promotion: Promotion, result: BenchmarkResult) -> list[Reason]:
    reasons = []
    for name in _needed(promotion):
        metric = result.metric(name)
        items = metric.model.items if metric is not None else 0
        passed = items >= promotion.min_items
        message = f"{name} rests on {items} items, at least {promotion.min_items} are needed"
        reasons.append(Reason(f"items of {name}", passed, message, items, promotion.min_items))
    return reasons


def _thresholds(promotion: Promotion, result: BenchmarkResult) -> list[Reason]:
    reasons = []
    for name, limit in _needed(promotion).items():
        metric = result.metric(name)
        reasons.append(_at_least(name, None if metric is None else metric.model.value, limit))
    return reasons


def _needed(promotion: Promotion) -> dict[str, float]:
    """Metric -> threshold. A data set without open questions is fine as long as nothing is asked of open recall."""
    needed = {METRIC: promotion.min_closed_accuracy}
    if promotion.min_open_recall > 0:
        needed["open_recall"] = promotion.min_open_recall
    return needed


def _at_least(name: str, value: float | None, limit: float) -> Reason:
    wrong = _wrong(value, 0.0)
    if wrong is not None or value is None:
        return Reason(name, False, f"{name} {wrong}", None, limit)
    return Reason(name, value >= limit, f"{name} is {value:.3f}, at least {limit:.3f} is needed", value, limit)


def _gain(promotion: Promotion, result: BenchmarkResult) -> Reason:
    name, limit = "image_gain", promotion.min_image_gain
    low = None if result.image_gain is None else result.image_gain.low
    wrong = _wrong(low, -1.0)
    if wrong is not None or low is None:
        return Reason(name, False, f"the lower end of {name} {wrong}", None, limit)
    message = f"the lower end of {name} (closed accuracy above the blind control) is {low:+.3f}, it must be above {limit:+.3f}"
    return Reason(name, low > limit, message, low, limit)


def _wrong(value: float | None, lowest: float) -> str | None:
    """What is wrong with a number that must lie in lowest..1, or None."""
    if value is None:
        return "is missing"
    if not math.isfinite(value):
        return "is not a finite number"
    if not lowest <= value <= 1:
        return f"is {value:g}, outside {lowest:g}..1: numbers are shares, not percent"
    return None


def _against(
    promotion: Promotion, candidate: Report, champion: Report, candidate_items: Sequence[Item], champion_items: Sequence[Item]
) -> list[Reason]:
    """Same items, and not worse on them."""
    result = candidate.benchmarks[0]
    other = next((found for found in champion.benchmarks if found.key == result.key), None)
    if other is None:
        return [Reason("same items", False, f"the champion was not evaluated on {result.key}")]
    for field in ("version", "items_digest"):
        ours, theirs = str(getattr(result, field)), str(getattr(other, field))
        if ours != theirs:
            message = (
                f"{field} is {ours[:12]} for the candidate and {theirs[:12]} for the champion: they answered different items"
            )
            return [Reason("same items", False, message)]
    mine, its = _closed(candidate_items, result.key), _closed(champion_items, result.key)
    if not mine or mine.keys() != its.keys():
        message = f"{len(mine)} closed items of the candidate and {len(its)} of the champion are not the same ones"
        return [Reason("same items", False, message)]
    same = Reason("same items", True, f"both answered the same {len(mine)} closed items of {result.key}")
    return [same, _difference(promotion, candidate, mine, its)]


def _closed(items: Sequence[Item], key: str) -> dict[str, Item]:
    return {item.id: item for item in items if item.benchmark == key and METRIC in item.scores}


def _difference(promotion: Promotion, report: Report, mine: Mapping[str, Item], its: Mapping[str, Item]) -> Reason:
    name, limit = "difference to champion", -promotion.max_loss_to_champion
    ids = sorted(mine)
    ours, theirs = ([side[one].scores[METRIC] for one in ids] for side in (mine, its))
    if not all(_wrong(score, 0.0) is None for score in (*ours, *theirs)):
        return Reason(name, False, f"an item's {METRIC} is not a finite share", None, limit)
    groups = [mine[one].group for one in ids]
    found = Draws(groups, report.bootstrap_samples, report.confidence, report.seed).paired(ours, theirs, groups)
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    message = f"{METRIC} minus the champion's on the same items is {found.value:+.3f}{ends}, it may be down to {limit:+.3f}"
    return Reason(name, found.value >= limit - ROUNDING, message, found.value, limit)

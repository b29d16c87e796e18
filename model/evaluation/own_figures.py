"""What a candidate's own report must show, before anybody compares it: the first benchmark decides.

1. `counted`: enough items for each metric that has a threshold.
2. `thresholds`: closed accuracy (strict) and open recall reach theirs.
3. `gain`: the lower end of the image gain's interval is *above* its own: a model that does not look is not promoted.
4. `leakage`: few enough of the questions are about images that also stand in training.
5. `recomputed`: the figures are those that the items give. Who edits a number has to edit the answers, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.config import Promotion
from model.evaluation.results import BenchmarkResult, Figure, Item
from model.evaluation.verdict import Evidence, Outcome, Reason, passed_or, reason, wrong

METRIC = "closed_accuracy"
OPEN_METRIC = "open_recall"
ROUNDING = 1e-9
"""Differences of means carry rounding errors of about 1e-16; 0.81 against 0.80 + 0.01 must not fail by one of them."""


SAME = 1e-6
"""A figure and the mean of its items may differ by the rounding of the sum of a million scores."""


def needed(promotion: Promotion) -> dict[str, float]:
    """Metric -> threshold. A data set without open questions is fine as long as nothing is asked of open recall."""
    found = {METRIC: promotion.min_closed_accuracy}
    if promotion.min_open_recall > 0:
        found[OPEN_METRIC] = promotion.min_open_recall
    return found


def counted(promotion: Promotion, result: BenchmarkResult) -> list[Reason]:
    """A reason for each metric that is looked at."""
    reasons = []
    for name in needed(promotion):
        metric = result.metric(name)
        items = metric.model.items if metric is not None else 0
        message = f"{name} rests on {items} items, at least {promotion.min_items} are needed"
        outcome = passed_or(Outcome.UNDECIDED, items >= promotion.min_items)
        reasons.append(reason(f"items of {name}", outcome, message, items, promotion.min_items))
    return reasons


def thresholds(promotion: Promotion, result: BenchmarkResult) -> list[Reason]:
    """A reason for each metric that is looked at."""
    reasons = []
    for name, limit in needed(promotion).items():
        metric = result.metric(name)
        value = None if metric is None else metric.model.value
        bad = wrong(value, 0.0)
        if bad is not None or value is None:
            reasons.append(reason(name, Outcome.FAILED, f"{name} {bad}", None, limit))
        else:
            message = f"{name} is {value:.3f}, at least {limit:.3f} is needed"
            reasons.append(reason(name, passed_or(Outcome.FAILED, value >= limit), message, value, limit))
    return reasons


def gain(promotion: Promotion, result: BenchmarkResult) -> Reason:
    """Whether the model looks."""
    name, limit = "image_gain", promotion.min_image_gain
    low = None if result.image_gain is None else result.image_gain.low
    bad = wrong(low, -1.0)
    if bad is not None or low is None:
        return reason(name, Outcome.FAILED, f"the lower end of {name} {bad}", None, limit)
    message = f"the lower end of {name} (closed accuracy above the blind control) is {low:+.3f}, it must be above {limit:+.3f}"
    return reason(name, passed_or(Outcome.FAILED, low > limit), message, low, limit)


def leakage(promotion: Promotion, result: BenchmarkResult) -> Reason:
    """Whether the benchmark asks about what was trained on."""
    name, limit = "leakage", promotion.max_seen_in_training
    if not 0 <= result.seen_items <= result.items or result.items <= 0:
        message = f"{result.seen_items} of {result.items} questions are said to be about training images: that cannot be"
        return reason(name, Outcome.FAILED, message, None, limit)
    share = result.seen_items / result.items
    message = (
        f"{result.seen_items} of {result.items} questions ({share:.3f}) are about training images, at most {limit:.3f} may be"
    )
    return reason(name, passed_or(Outcome.FAILED, share <= limit + ROUNDING), message, share, limit)


def recomputed(promotion: Promotion, candidate: Evidence, result: BenchmarkResult) -> list[Reason]:
    """One reason for each figure that the items do not give, or one that all is as the items say."""
    own = [item for item in candidate.items if item.benchmark == result.key]
    seen = sum(item.seen_in_training for item in own)
    bad = []
    if len({item.id for item in own}) != len(own) or len(own) != result.items or seen != result.seen_items:
        bad.append(
            f"the report counts {result.items} items, {result.seen_items} of them seen in training; there are {len(own)} and {seen}"
        )
    for name in needed(promotion):
        metric = result.metric(name)
        if metric is not None and not _same(metric.model, [item.scores[name] for item in own if name in item.scores]):
            bad.append(f"{name} is not the mean of its items")
    paired = [item for item in own if METRIC in item.scores]
    if not all(METRIC in item.blind_scores for item in paired):
        bad.append("an item has no score of the blind control")
    elif result.image_gain is not None:
        differences = [item.scores[METRIC] - item.blind_scores[METRIC] for item in paired]
        if not _same(result.image_gain, differences):
            bad.append("image_gain is not the mean of its items")
    name = "figures of the items"
    if not bad:
        return [reason(name, Outcome.PASSED, f"the {len(own)} items give the figures of the report")]
    return [reason(name, Outcome.FAILED, message) for message in bad]


def scores(items: Sequence[Item], key: str, name: str) -> dict[str, Item]:
    """Id -> item of a benchmark, for those that a metric applies to."""
    return {item.id: item for item in items if item.benchmark == key and name in item.scores}


def _same(figure: Figure, values: Sequence[float]) -> bool:
    if wrong(figure.value, -1.0) is not None or figure.items != len(values) or not values:
        return False
    return abs(sum(values) / len(values) - figure.value) < SAME

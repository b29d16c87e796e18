"""Candidate and present champion on the same items, item by item, so that what is hard for both cancels out.

1. `same_questions`: both reports answered the same items of the same version of the benchmark, with answers of the same length. Else
   nothing can be compared, and that is a refusal.
2. `against`: the paired differences of a metric, with a bootstrap interval over the groups. *Non-inferior* if its lower end is not
   below minus the margin, *superior* if it is above 0. A mean beyond the margin fails; a mean within it whose interval is not says
   too little.
3. `slices`: no modality may lose more than its margin (mean of the paired differences). Modalities with few items are named and not
   judged; so are the losses that the total hides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model.config import Against, Promotion
from model.evaluation.bootstrap import Draws, Interval
from model.evaluation.own_figures import METRIC, ROUNDING, needed, scores
from model.evaluation.results import Item, Report
from model.evaluation.verdict import Evidence, Outcome, Reason, passed_or, reason, wrong

SAME = "same items"
LIKE = ("group", "modality", "answer_type")
"""What an item says of its question; equal on both sides, or one of the reports is about something else."""


def compared(promotion: Promotion, candidate: Evidence, champion: Evidence) -> list[Reason]:
    """Every check against the champion; only what makes them meaningless, if something does."""
    result = candidate.report.benchmarks[0]
    refusal = same_questions(candidate.report, champion.report)
    if refusal is not None:
        return [refusal]
    reasons: list[Reason] = []
    for name in needed(promotion):
        mine, its = scores(candidate.items, result.key, name), scores(champion.items, result.key, name)
        refusal = _same_items(name, mine, its)
        if refusal is not None:
            return [refusal]
        message = f"both answered the same {len(mine)} items of {result.key} for {name}"
        reasons += [reason(SAME, Outcome.PASSED, message), against(promotion, candidate.report, name, mine, its)]
        if name == METRIC:
            reasons += slices(promotion, candidate.report, mine, its)
    return reasons


def same_questions(candidate: Report, champion: Report) -> Reason | None:
    """A refusal if the champion was not asked the same; None if it was."""
    result = candidate.benchmarks[0]
    other = next((found for found in champion.benchmarks if found.key == result.key), None)
    if other is None:
        return reason(SAME, Outcome.REFUSAL, f"the champion was not evaluated on {result.key}")
    pairs = [(field, getattr(result, field), getattr(other, field)) for field in ("version", "items_digest")]
    pairs.append(("max_new_tokens", candidate.max_new_tokens, champion.max_new_tokens))
    for field, ours, theirs in pairs:
        if ours != theirs:
            message = f"{field} is {str(ours)[:12]} for the candidate and {str(theirs)[:12]} for the champion"
            return reason(SAME, Outcome.REFUSAL, message)
    return None


def against(promotion: Promotion, report: Report, name: str, mine: Mapping[str, Item], its: Mapping[str, Item]) -> Reason:
    """Whether the candidate is shown to be not worse, or better, than the champion in one metric."""
    check, margin = f"{name} against the champion", promotion.max_loss_to_champion
    superior = promotion.against_champion is Against.SUPERIOR
    limit = 0.0 if superior else -margin
    found = _paired(report, name, sorted(mine), mine, its)
    if found is None:
        return reason(check, Outcome.FAILED, f"an item's {name} is not a finite share", None, limit)
    asked = "above" if superior else "at least"
    message = f"{name} minus the champion's is {found.value:+.3f}{_ends(found)} on the same items, all of it must be {asked} {limit:+.3f}"
    return reason(check, shown(found, limit, superior), message, found.value, limit)


def slices(promotion: Promotion, report: Report, mine: Mapping[str, Item], its: Mapping[str, Item]) -> list[Reason]:
    """A reason for each modality."""
    reasons, limit = [], -promotion.max_slice_loss
    for modality in sorted({item.modality for item in mine.values()}):
        ids = sorted(one for one, item in mine.items() if item.modality == modality)
        check = f"modality {modality or 'not given'}"
        found = _paired(report, METRIC, ids, mine, its)
        if found is None:
            reasons.append(reason(check, Outcome.FAILED, f"an item's {METRIC} is not a finite share", None, limit))
        elif len(ids) < promotion.min_slice_items:
            message = (
                f"{METRIC} changed by {found.value:+.3f} on {len(ids)} items, fewer than {promotion.min_slice_items}: not judged"
            )
            reasons.append(reason(check, Outcome.PASSED, message, found.value, limit))
        else:
            message = f"{METRIC} changed by {found.value:+.3f}{_ends(found)} on {len(ids)} items, it may fall to {limit:+.3f}"
            good = found.value >= limit - ROUNDING
            reasons.append(reason(check, passed_or(Outcome.FAILED, good), message, found.value, limit))
    return reasons


def _same_items(name: str, mine: Mapping[str, Item], its: Mapping[str, Item]) -> Reason | None:
    if not mine or mine.keys() != its.keys():
        message = f"{len(mine)} items of the candidate and {len(its)} of the champion for {name} are not the same ones"
        return reason(SAME, Outcome.REFUSAL, message)
    unlike = sum(any(getattr(mine[one], field) != getattr(its[one], field) for field in LIKE) for one in mine)
    if unlike:
        return reason(SAME, Outcome.REFUSAL, f"{unlike} of {len(mine)} items differ in {', '.join(LIKE)} between the reports")
    return None


def shown(found: Interval, limit: float, above: bool) -> Outcome:
    """How a paired difference ends: passed if its whole interval is beyond the limit, failed if its mean is not, undecided between."""
    if found.low is not None and (found.low > limit if above else found.low >= limit - ROUNDING):
        return Outcome.PASSED
    within = found.value > limit if above else found.value >= limit - ROUNDING
    return Outcome.UNDECIDED if within else Outcome.FAILED


def _paired(report: Report, name: str, ids: Sequence[str], mine: Mapping[str, Item], its: Mapping[str, Item]) -> Interval | None:
    """Mean and interval of the differences; None if a score is no finite share."""
    ours, theirs = ([side[one].scores[name] for one in ids] for side in (mine, its))
    if not all(wrong(score, 0.0) is None for score in (*ours, *theirs)):
        return None
    groups = [mine[one].group for one in ids]
    return Draws(groups, report.bootstrap_samples, report.confidence, report.seed).paired(ours, theirs, groups)


def _ends(found: Interval) -> str:
    return "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"

"""Whether a candidate becomes the champion: pure, from two reports with their items and what else is known.

The first benchmark of the report decides. In order:
1. The gate itself may be used: it is the one that the champion passed, or stands on the approved list. So a limit cannot be lowered
   by the same change that would fall below it.
2. The licences of all that the weights were made from allow the purpose.
3. The benchmark is the frozen one, if the gate names one.
4. The candidate's own figures (`own_figures`): every number that is looked at is there, finite and a share (0.9, not 90), is what the
   items give, and reaches its threshold.
5. If there is a champion, the candidate is compared with it on the same items (`comparison`).

Each check is a `Reason` with value, limit and outcome. All that fails is named, not only the first. Raising a score of the candidate
can turn hold into promote and never promote into hold. With too few items (`min_items`) the verdict is not_enough_data, whatever the
others say, unless a number is wrong or nothing may be decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.config import Promotion
from model.evaluation import own_figures
from model.evaluation.comparison import compared
from model.evaluation.gates import gate_digest, usable
from model.evaluation.own_figures import METRIC
from model.evaluation.results import BenchmarkResult
from model.evaluation.verdict import Decision, Evidence, Outcome, Reason, Verdict, passed_or, reason, verdict_of

__all__ = ["METRIC", "Decision", "Evidence", "Grounds", "Outcome", "Reason", "Verdict", "decide", "gate_digest"]


@dataclass(frozen=True)
class Grounds:
    """What the decision rests on beside the reports. Nothing of it comes from a tag."""

    licences: tuple[str, ...]
    """Licences of every data set and base model that the weights depend on."""
    forbidden: Mapping[str, str] = field(default_factory=dict)
    """Those of them that do not allow the purpose, with the reason in words."""
    champions_gate: str = ""
    """`gate_digest` of the gate that made the present champion; empty if nobody knows."""
    approved: frozenset[str] = frozenset()
    """`gate_digest`s on the approved list."""


def decide(promotion: Promotion, candidate: Evidence, champion: Evidence | None, grounds: Grounds) -> Decision:
    """Promote, hold, or not enough data.

    Args:
        promotion: The gate.
        candidate: Report and items of the candidate.
        champion: Those of the present champion on the same items; None if there is no champion.
        grounds: What else is known.
    """
    reasons = [_gate(promotion, champion is not None, grounds), _licences(promotion, grounds)]
    if not candidate.report.benchmarks:
        reasons.append(reason("benchmark", Outcome.FAILED, "the report holds no benchmark"))
        return Decision(Verdict.HOLD, tuple(reasons))
    result = candidate.report.benchmarks[0]
    counts = own_figures.counted(promotion, result)
    reasons += [*_frozen(promotion, result), *counts, *own_figures.thresholds(promotion, result)]
    reasons += [own_figures.gain(promotion, result), own_figures.leakage(promotion, result)]
    reasons += own_figures.recomputed(promotion, candidate, result)
    if champion is None:
        reasons.append(reason("champion", Outcome.PASSED, "there is no champion to compare with"))
    else:
        reasons += compared(promotion, candidate, champion)
    return Decision(_verdict(reasons, counts), tuple(reasons))


def _verdict(reasons: list[Reason], counts: list[Reason]) -> Verdict:
    few = any(one.outcome == Outcome.UNDECIDED for one in counts)
    # A failure without a value is a number that is missing or wrong: more items would not help.
    wrong = any(not one.passed and (one.outcome == Outcome.REFUSAL or one.value is None) for one in reasons)
    return Verdict.NOT_ENOUGH_DATA if few and not wrong else verdict_of(reasons)


def _gate(promotion: Promotion, has_champion: bool, grounds: Grounds) -> Reason:
    found = usable(promotion, has_champion, grounds.champions_gate, grounds.approved)
    return reason("gate", passed_or(Outcome.REFUSAL, found.allowed), found.message)


def _licences(promotion: Promotion, grounds: Grounds) -> Reason:
    name, purpose = "licences", promotion.purpose
    if not grounds.licences:
        return reason(name, Outcome.REFUSAL, f"no licence is known of what the weights were made from, for {purpose}")
    if grounds.forbidden:
        words = "; ".join(f"{licence}: {why}" for licence, why in sorted(grounds.forbidden.items()))
        return reason(name, Outcome.REFUSAL, f"{purpose} is not allowed by {words}")
    return reason(name, Outcome.PASSED, f"{', '.join(grounds.licences)} allow {purpose}")


def _frozen(promotion: Promotion, result: BenchmarkResult) -> list[Reason]:
    if promotion.frozen_items is None:
        return []
    message = f"the report is about the items {result.items_digest[:12]}, the gate's benchmark is {promotion.frozen_items[:12]}"
    good = result.items_digest == promotion.frozen_items
    return [reason("frozen benchmark", passed_or(Outcome.REFUSAL, good), message)]

"""The gate: pure, so every way of passing and failing is a case of a few lines (C8, C10, C12)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Promotion
from model.evaluation.decision import Decision, Evidence, Grounds, Verdict, decide, gate_digest
from model.evaluation.results import Item, Report
from tests.model.evaluation.tiny_reports import report

GATES = Promotion(min_closed_accuracy=0.6, min_image_gain=0.1, min_items=20)
GOOD = [number % 5 != 0 for number in range(60)]
HALF = [number % 2 == 0 for number in range(60)]
FREE = Grounds(licences=("CC0-1.0",))
Whole = tuple[Report, list[Item]]


def judge(gates: Promotion, candidate: Whole, champion: Whole | None = None, grounds: Grounds = FREE) -> Decision:
    """Decide with a gate that is on the approved list."""
    known = Grounds(grounds.licences, grounds.forbidden, approved=frozenset({gate_digest(gates)}))
    return decide(gates, Evidence(*candidate), None if champion is None else Evidence(*champion), known)


def with_figure(pair: Whole, name: str, **changes: Any) -> Whole:
    """The report with one figure changed past validation, as a careless writer could."""
    result = pair[0].benchmarks[0]
    metrics = tuple(
        metric.model_copy(update={"model": metric.model.model_copy(update=changes)}) if metric.name == name else metric
        for metric in result.metrics
    )
    return with_result(pair, metrics=metrics)


def with_result(pair: Whole, **changes: Any) -> Whole:
    whole, items = pair
    return whole.model_copy(update={"benchmarks": (whole.benchmarks[0].model_copy(update=changes),)}), items


def failed(pair: Whole, gates: Promotion = GATES) -> dict[str, str]:
    return {reason.check: reason.message for reason in judge(gates, pair).failed}


def test_a_model_that_passes_every_gate_is_promoted_and_every_check_is_recorded() -> None:
    decision = judge(GATES, report(GOOD))
    assert decision.verdict is Verdict.PROMOTE
    found = {reason.check: (reason.value, reason.limit) for reason in decision.reasons}
    assert found["closed_accuracy"] == (pytest.approx(0.8), 0.6)
    assert found["items of closed_accuracy"] == (60, 20)
    assert found["image_gain"][1] == 0.1
    assert {"gate", "licences", "leakage", "figures of the items", "champion"} <= set(found)
    assert all(reason.outcome == "passed" for reason in decision.reasons)


def test_a_model_below_a_threshold_is_held_with_the_number_and_the_limit() -> None:
    assert judge(GATES, report(HALF)).verdict is Verdict.HOLD
    assert failed(report(HALF)) == {"closed_accuracy": "closed_accuracy is 0.500, at least 0.600 is needed"}


def test_a_model_that_does_not_look_is_held_however_good_it_is() -> None:
    blind = report(GOOD, blind=GOOD)
    assert judge(GATES, blind).verdict is Verdict.HOLD
    assert list(failed(blind)) == ["image_gain"]
    assert list(failed(blind, GATES.model_copy(update={"min_image_gain": 0.0}))) == ["image_gain"]  # 0 is not above 0


def test_the_open_gate_counts_only_if_it_is_set() -> None:
    pair = report(GOOD, open_right=HALF)
    assert judge(GATES, pair).verdict is Verdict.PROMOTE
    assert list(failed(pair, GATES.model_copy(update={"min_open_recall": 0.6}))) == ["open_recall"]


def test_few_items_are_not_enough_data_whatever_they_say() -> None:
    for right in (GOOD[:12], HALF[:12]):
        assert judge(GATES, report(right)).verdict is Verdict.NOT_ENOUGH_DATA


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 90.0, -0.1, "0.9", None, True])
def test_a_number_that_is_no_share_fails_by_name(value: Any) -> None:
    for few in (GOOD, GOOD[:8]):  # not even few items turn it into not_enough_data
        pair = with_figure(report(few), "closed_accuracy", value=value)
        assert judge(GATES, pair).verdict is Verdict.HOLD
        words = "is not a finite number" if not isinstance(value, float) or not math.isfinite(value) else "outside 0..1"
        assert ("closed_accuracy is missing" if value is None else words) in failed(pair)["closed_accuracy"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -2.0, 40.0, None])
def test_an_image_gain_that_is_no_difference_of_shares_fails_by_name(value: Any) -> None:
    pair = report(GOOD)
    gain = pair[0].benchmarks[0].image_gain
    assert gain is not None
    pair = with_result(pair, image_gain=gain.model_copy(update={"low": value}))
    assert judge(GATES, pair).verdict is Verdict.HOLD
    assert "image_gain" in failed(pair)["image_gain"]


def test_ninety_is_taken_for_percent_and_refused() -> None:
    assert "not percent" in failed(with_figure(report(GOOD), "closed_accuracy", value=90.0))["closed_accuracy"]


def test_what_is_missing_fails_by_name() -> None:
    pair = report(GOOD)
    bare = with_result(pair, metrics=(), image_gain=None)
    assert judge(GATES, bare).verdict is Verdict.HOLD
    assert failed(bare)["closed_accuracy"] == "closed_accuracy is missing"
    assert "image_gain is missing" in failed(bare)["image_gain"]
    assert "image_gain" in failed(report(GOOD[:4]))  # one group has no interval
    empty = pair[0].model_copy(update={"benchmarks": ()}), pair[1]
    assert judge(GATES, empty).verdict is Verdict.HOLD


def test_a_figure_that_its_items_do_not_give_is_held() -> None:
    """Who edits a number has to edit the answers, too."""
    whole, items = report(HALF)
    better = with_figure((whole, items), "closed_accuracy", value=0.9)
    assert failed(better) == {"figures of the items": "closed_accuracy is not the mean of its items"}
    gain = whole.benchmarks[0].image_gain
    assert gain is not None
    looking = with_result(report(GOOD, blind=GOOD), image_gain=gain.model_copy(update={"value": 0.5, "low": 0.4}))
    assert failed(looking) == {"figures of the items": "image_gain is not the mean of its items"}
    for changed in (items[1:], [*items, items[0]], []):
        assert "figures of the items" in failed((whole, changed))


def test_a_benchmark_about_training_images_is_held_unless_the_gate_allows_it() -> None:
    whole, items = report(GOOD)
    seen = [item.model_copy(update={"seen_in_training": number < 6}) for number, item in enumerate(items)]
    leaking = with_result((whole, seen), seen_items=6, seen_images=2)
    assert list(failed(leaking)) == ["leakage"]
    assert judge(GATES, leaking).verdict is Verdict.HOLD
    assert judge(GATES.model_copy(update={"max_seen_in_training": 0.1}), leaking).verdict is Verdict.PROMOTE
    assert "figures of the items" in failed((leaking[0], items))  # the count cannot be lowered in one place
    assert "figures of the items" in failed((whole, seen))
    assert "leakage" in failed(with_result((whole, items), seen_items=61))


def test_a_candidate_is_compared_with_the_champion_on_the_same_items() -> None:
    better, worse = report(GOOD), report([good and number % 10 != 1 for number, good in enumerate(GOOD)])
    assert judge(GATES, better, worse).verdict is Verdict.PROMOTE
    down = judge(GATES, worse, better)
    assert down.verdict is Verdict.HOLD
    assert down.failed[0].check == "closed_accuracy against the champion"
    assert down.failed[0].value == pytest.approx(-0.1)
    assert down.failed[0].limit == -Promotion().max_loss_to_champion
    tolerant = GATES.model_copy(update={"max_loss_to_champion": 0.25, "max_slice_loss": 0.25})
    assert judge(tolerant, worse, better).verdict is Verdict.PROMOTE


def test_a_loss_that_the_interval_does_not_exclude_is_not_enough_data() -> None:
    """Two answers of 60 changed for the better and two for the worse: the mean is 0, and it could as well be -0.05."""
    other = [good != (number in (0, 5, 11, 26)) for number, good in enumerate(GOOD)]
    decision = judge(GATES, report(other), report(GOOD))
    assert decision.verdict is Verdict.NOT_ENOUGH_DATA
    assert [(reason.check, reason.value) for reason in decision.failed] == [("closed_accuracy against the champion", 0.0)]
    assert judge(GATES.model_copy(update={"max_loss_to_champion": 0.2}), report(other), report(GOOD)).verdict is Verdict.PROMOTE


def test_superior_asks_for_more_than_not_worse() -> None:
    superior = Promotion(**{**GATES.model_dump(), "against_champion": "superior"})
    same, far_better = report(GOOD), report([True] * 60)
    assert judge(superior, far_better, same).verdict is Verdict.PROMOTE
    assert judge(superior, same, same).verdict is Verdict.HOLD
    little = report([good or number == 0 for number, good in enumerate(GOOD)])
    assert judge(superior, little, same).verdict is Verdict.NOT_ENOUGH_DATA
    assert judge(GATES, little, same).verdict is Verdict.PROMOTE


def test_no_modality_may_lose_more_than_its_margin_though_the_total_gains() -> None:
    """Items stand in groups of four, modalities change from group to group: ct, mr, ct, ..."""
    modality = [("ct", "mr")[number // 4 % 2] for number in range(160)]
    champion = [number % 4 != 0 for number in range(160)]
    candidate = [True if m == "ct" else number % 4 > 1 or number % 32 == 5 for number, m in enumerate(modality)]
    lenient = GATES.model_copy(update={"max_loss_to_champion": 1.0})
    decision = judge(lenient, report(candidate), report(champion))
    assert decision.verdict is Verdict.HOLD
    assert [(reason.check, reason.value) for reason in decision.failed] == [("modality mr", -0.1875)]
    assert (
        judge(lenient.model_copy(update={"max_slice_loss": 0.2}), report(candidate), report(champion)).verdict is Verdict.PROMOTE
    )
    few = judge(lenient.model_copy(update={"min_slice_items": 81}), report(candidate), report(champion))
    assert few.verdict is Verdict.PROMOTE
    assert "fewer than 81: not judged" in {reason.check: reason.message for reason in few.reasons}["modality mr"]


def test_a_model_equal_to_the_champion_is_promoted_even_without_tolerance() -> None:
    strict = GATES.model_copy(update={"max_loss_to_champion": 0.0, "max_slice_loss": 0.0})
    assert judge(strict, report(GOOD), report(GOOD)).verdict is Verdict.PROMOTE


@pytest.mark.parametrize("changes", [{"version": 2}, {"items_digest": "d" * 64}, {"split": "other"}, {"benchmark": "other"}])
def test_a_champion_that_answered_something_else_is_a_refusal(changes: dict[str, Any]) -> None:
    decision = judge(GATES, report(GOOD), with_result(report(GOOD), **changes))
    assert decision.verdict is Verdict.HOLD
    assert [reason.check for reason in decision.failed] == ["same items"]
    assert decision.refusals == decision.failed


def test_a_champion_with_other_lengths_of_answers_is_a_refusal() -> None:
    whole, items = report(GOOD)
    longer = whole.model_copy(update={"max_new_tokens": 64}), items
    assert [reason.check for reason in judge(GATES, (whole, items), longer).refusals] == ["same items"]


def test_items_that_are_missing_or_others_are_refusals() -> None:
    whole, items = report(GOOD)
    moved = [items[0].model_copy(update={"modality": "us"}), *items[1:]]
    for its in ([], items[1:], moved):
        decision = judge(GATES, (whole, items), (whole, its))
        assert decision.verdict is Verdict.HOLD
        assert [reason.check for reason in decision.refusals] == ["same items"]


def test_an_item_without_a_finite_score_holds() -> None:
    whole, items = report(GOOD)
    broken = [items[0].model_copy(update={"scores": {"closed_accuracy": math.nan}}), *items[1:]]
    assert judge(GATES, (whole, broken), (whole, items)).verdict is Verdict.HOLD
    assert judge(GATES, (whole, items), (whole, broken)).verdict is Verdict.HOLD


def test_a_report_of_other_items_than_the_frozen_ones_is_a_refusal() -> None:
    pair = report(GOOD)
    right = GATES.model_copy(update={"frozen_items": pair[0].benchmarks[0].items_digest})
    assert judge(right, pair).verdict is Verdict.PROMOTE
    other = GATES.model_copy(update={"frozen_items": "a" * 64})
    assert [reason.check for reason in judge(other, pair).refusals] == ["frozen benchmark"]


def test_a_gate_that_was_changed_needs_a_place_on_the_approved_list() -> None:
    pair = report(GOOD)
    old, weaker = GATES, GATES.model_copy(update={"min_closed_accuracy": 0.1})

    def check(gate: Promotion, champion: Whole | None, before: str, *approved: Promotion) -> Decision:
        grounds = Grounds(("CC0-1.0",), {}, before, frozenset(gate_digest(one) for one in approved))
        return decide(gate, Evidence(*pair), None if champion is None else Evidence(*champion), grounds)

    assert check(old, pair, gate_digest(old)).verdict is Verdict.PROMOTE
    refused = check(weaker, pair, gate_digest(old))
    assert refused.verdict is Verdict.HOLD
    assert [reason.check for reason in refused.refusals] == ["gate"]
    assert gate_digest(weaker) in refused.refusals[0].message  # what a person would put on the list
    assert check(weaker, pair, gate_digest(old), weaker).verdict is Verdict.PROMOTE
    assert check(old, pair, "").refusals  # a champion of which nobody knows the gate
    assert check(weaker, None, "").verdict is Verdict.PROMOTE  # the first one


def test_every_setting_of_a_gate_belongs_to_its_name() -> None:
    changed = {
        name: [one for one in (0, 0.5, 2, 7, "superior", "commercial", "f" * 64) if _fits(name, one)]
        for name in Promotion.model_fields
    }
    for name, values in changed.items():
        digests = {gate_digest(Promotion.model_validate({**GATES.model_dump(), name: value})) for value in values}
        assert digests - {gate_digest(GATES)}, name


def _fits(name: str, value: Any) -> bool:
    try:
        return bool(Promotion.model_validate({**GATES.model_dump(), name: value}))
    except ValueError:
        return False


def test_a_licence_that_forbids_the_purpose_is_a_refusal_and_none_at_all_too() -> None:
    taint = Grounds(("CC0-1.0", "CC-BY-NC-4.0"), {"CC-BY-NC-4.0": "no commercial use"})
    refused = judge(GATES, report(GOOD), None, taint).refusals
    assert [reason.check for reason in refused] == ["licences"]
    assert "CC-BY-NC-4.0: no commercial use" in refused[0].message
    assert [reason.check for reason in judge(GATES, report(GOOD), None, Grounds(())).refusals] == ["licences"]


ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=16, max_size=40)
LIMITS = st.builds(
    Promotion,
    min_closed_accuracy=st.floats(0, 1),
    min_image_gain=st.floats(-1, 0.5),
    min_items=st.integers(1, 30),
    max_loss_to_champion=st.floats(0, 0.5),
    max_slice_loss=st.floats(0, 0.5),
    against_champion=st.sampled_from(["non_inferior", "superior"]),
)


@given(ANSWERS, LIMITS, st.data())
@settings(max_examples=20, deadline=None)
def test_raising_a_score_never_turns_promote_into_hold(
    answers: list[tuple[bool, bool, bool]], gates: Promotion, data: st.DataObject
) -> None:
    candidate, blind, champion = ([row[k] for row in answers] for k in range(3))
    raised = data.draw(st.sets(st.integers(0, len(answers) - 1), min_size=1))
    after = [right or place in raised for place, right in enumerate(candidate)]
    before_pair, after_pair, old = report(candidate, blind), report(after, blind), report(champion)
    if judge(gates, before_pair, old).verdict is Verdict.PROMOTE:
        assert judge(gates, after_pair, old).verdict is Verdict.PROMOTE

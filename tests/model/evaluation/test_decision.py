from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Promotion
from model.evaluation.decision import Verdict, decide
from model.evaluation.results import Report
from tests.model.evaluation.tiny_reports import report

GATES = Promotion(min_closed_accuracy=0.6, min_image_gain=0.1, min_items=20)
GOOD = [number % 5 != 0 for number in range(60)]
HALF = [number % 2 == 0 for number in range(60)]


def with_figure(whole: Report, name: str, **changes: Any) -> Report:
    """The report with one figure changed past validation, as a careless writer could."""
    result = whole.benchmarks[0]
    metrics = tuple(
        metric.model_copy(update={"model": metric.model.model_copy(update=changes)}) if metric.name == name else metric
        for metric in result.metrics
    )
    return whole.model_copy(update={"benchmarks": (result.model_copy(update={"metrics": metrics}),)})


def with_result(whole: Report, **changes: Any) -> Report:
    return whole.model_copy(update={"benchmarks": (whole.benchmarks[0].model_copy(update=changes),)})


def failed(whole: Report, gates: Promotion = GATES) -> dict[str, str]:
    return {reason.check: reason.message for reason in decide(gates, whole).failed}


def test_a_model_that_passes_every_gate_is_promoted_and_every_check_is_recorded() -> None:
    decision = decide(GATES, report(GOOD)[0])
    assert decision.verdict is Verdict.PROMOTE
    found = {reason.check: (reason.value, reason.limit) for reason in decision.reasons}
    assert found["closed_accuracy"] == (pytest.approx(0.8), 0.6)
    assert found["items of closed_accuracy"] == (60, 20)
    assert found["image_gain"][1] == 0.1


def test_a_model_below_a_threshold_is_held_with_the_number_and_the_limit() -> None:
    whole = report(HALF)[0]
    assert decide(GATES, whole).verdict is Verdict.HOLD
    assert failed(whole) == {"closed_accuracy": "closed_accuracy is 0.500, at least 0.600 is needed"}


def test_a_model_that_does_not_look_is_held_however_good_it_is() -> None:
    whole = report(GOOD, blind=GOOD)[0]
    assert decide(GATES, whole).verdict is Verdict.HOLD
    assert list(failed(whole)) == ["image_gain"]
    assert list(failed(whole, GATES.model_copy(update={"min_image_gain": 0.0}))) == ["image_gain"]  # 0 is not above 0


def test_the_open_gate_counts_only_if_it_is_set() -> None:
    whole = report(GOOD, open_right=HALF)[0]
    assert decide(GATES, whole).verdict is Verdict.PROMOTE
    assert list(failed(whole, GATES.model_copy(update={"min_open_recall": 0.6}))) == ["open_recall"]


def test_few_items_are_not_enough_data_whatever_they_say() -> None:
    for right in (GOOD[:12], HALF[:12]):
        assert decide(GATES, report(right)[0]).verdict is Verdict.NOT_ENOUGH_DATA


@pytest.mark.parametrize("value", [math.nan, math.inf, 90.0, -0.1])
def test_a_number_that_is_no_share_fails_by_name(value: float) -> None:
    whole = with_figure(report(GOOD)[0], "closed_accuracy", value=value)
    assert decide(GATES, whole).verdict is Verdict.HOLD
    assert "closed_accuracy is" in failed(whole)["closed_accuracy"]


def test_ninety_is_taken_for_percent_and_refused() -> None:
    whole = with_figure(report(GOOD)[0], "closed_accuracy", value=90.0)
    assert "not percent" in failed(whole)["closed_accuracy"]


def test_what_is_missing_fails_by_name() -> None:
    whole = report(GOOD)[0]
    bare = with_result(whole, metrics=(), image_gain=None)
    assert decide(GATES, bare).verdict is Verdict.HOLD
    assert failed(bare)["closed_accuracy"] == "closed_accuracy is missing"
    assert "image_gain is missing" in failed(bare)["image_gain"]
    one_image = report(GOOD[:4])[0]
    assert "image_gain" in failed(one_image)  # one group has no interval
    empty = whole.model_copy(update={"benchmarks": ()})
    assert decide(GATES, empty).verdict is Verdict.HOLD


def test_a_candidate_is_compared_with_the_champion_on_the_same_items() -> None:
    (better, items), (worse, worse_items) = report(GOOD), report([g and n % 10 != 1 for n, g in enumerate(GOOD)])
    assert decide(GATES, better, worse, items, worse_items).verdict is Verdict.PROMOTE
    down = decide(GATES, worse, better, worse_items, items)
    assert down.verdict is Verdict.HOLD
    assert [reason.check for reason in down.failed] == ["difference to champion"]
    assert down.failed[0].value == pytest.approx(-0.1)
    assert down.failed[0].limit == -0.01
    tolerant = GATES.model_copy(update={"max_loss_to_champion": 0.1})
    assert decide(tolerant, worse, better, worse_items, items).verdict is Verdict.PROMOTE


def test_a_model_equal_to_the_champion_is_promoted_even_without_tolerance() -> None:
    whole, items = report(GOOD)
    strict = GATES.model_copy(update={"max_loss_to_champion": 0.0})
    assert decide(strict, whole, whole, items, items).verdict is Verdict.PROMOTE


@pytest.mark.parametrize("changes", [{"version": 2}, {"items_digest": "d" * 64}, {"split": "other"}])
def test_a_champion_that_answered_something_else_holds(changes: dict[str, Any]) -> None:
    whole, items = report(GOOD)
    decision = decide(GATES, whole, with_result(whole, **changes), items, items)
    assert decision.verdict is Verdict.HOLD
    assert [reason.check for reason in decision.failed] == ["same items"]


def test_items_that_are_missing_or_others_hold() -> None:
    whole, items = report(GOOD)
    for mine, its in (((), items), (items, ()), (items, items[1:])):
        decision = decide(GATES, whole, whole, mine, its)
        assert decision.verdict is Verdict.HOLD
        assert [reason.check for reason in decision.failed] == ["same items"]


def test_an_item_without_a_finite_score_holds() -> None:
    whole, items = report(GOOD)
    broken = [items[0].model_copy(update={"scores": {"closed_accuracy": math.nan}}), *items[1:]]
    assert decide(GATES, whole, whole, broken, items).verdict is Verdict.HOLD


ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=16, max_size=40)
LIMITS = st.builds(
    Promotion,
    min_closed_accuracy=st.floats(0, 1),
    min_image_gain=st.floats(-1, 0.5),
    min_items=st.integers(1, 30),
    max_loss_to_champion=st.floats(0, 0.5),
)


@given(ANSWERS, LIMITS, st.data())
@settings(max_examples=20, deadline=None)
def test_raising_a_score_never_turns_promote_into_hold(
    answers: list[tuple[bool, bool, bool]], gates: Promotion, data: st.DataObject
) -> None:
    candidate, blind, champion = ([row[k] for row in answers] for k in range(3))
    raised = data.draw(st.sets(st.integers(0, len(answers) - 1), min_size=1))
    after = [right or place in raised for place, right in enumerate(candidate)]
    old, its = report(champion)
    (before_report, before_items), (after_report, after_items) = report(candidate, blind), report(after, blind)
    if decide(gates, before_report, old, before_items, its).verdict is Verdict.PROMOTE:
        assert decide(gates, after_report, old, after_items, its).verdict is Verdict.PROMOTE

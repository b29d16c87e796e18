from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.records import AnswerType
from model.evaluation.metrics import METRICS, contains, contains_guarded, equal, exact_match_score, normalise, overlap, score_item

ANSWERS = st.text(alphabet="ab no.,-5'/the", max_size=20) | st.text(max_size=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left lung.", "left lung"),
        ("Two", "2"),
        ("none", "0"),
        ("MRI-T2", "mri t2"),
        ("CT, axial", "ct axial"),
        ("3.5 cm", "3.5 cm"),
        ("U.S. image", "us image"),
        ("1,000 cells", "1000 cells"),
        ("isnt", "isn't"),
        ("Left-sided pleural effusion (small)", "left sided pleural effusion small"),
    ],
)
def test_the_normaliser_gives_what_the_published_one_gave(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-b c -d", "ab c d"),  # "-" touches a space somewhere, so it is deleted everywhere
        ("1,000 a/b", "1000 ab"),  # a comma between digits deletes every mark
        ("a.b", "ab"),
        ("couldnt've", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # a capitalised entry of the published map that never matches
        ("A", ""),
        ("." * 40, "." * 8),  # only 32 points are removed
    ],
)
def test_the_normaliser_keeps_the_quirks_of_the_published_one(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_no_is_found_in_normal_by_the_published_rule_and_not_by_the_strict_one() -> None:
    assert contains("no", "normal heart") == 1
    assert contains_guarded("no", "normal heart") == 1
    assert equal("no", "normal heart") == 0
    assert equal("no", "No.") == 1


def test_an_answer_that_says_both_is_right_for_either_by_the_published_rules_only() -> None:
    for reference in ("yes", "no"):
        assert contains(reference, "yes or no") == contains_guarded(reference, "yes or no") == 1
        assert equal(reference, "yes or no") == 0


def test_the_guarded_rule_gives_nothing_for_other_closed_answers() -> None:
    assert contains_guarded("left", "left") == 0
    assert contains("left", "left") == equal("left", "left") == 1


def test_a_reference_that_the_normaliser_erases_is_compared_as_written() -> None:
    assert contains("A", "anything") == 1
    assert equal("A", "") == equal("A", "the") == 0
    assert equal("A", " a ") == 1


def test_open_scores_follow_the_published_multiset_rule() -> None:
    scores = overlap("left upper lobe", "left left lung")
    # tp = 2 (both "left"), fp = 1, fn = 2 (upper, lobe)
    assert scores.recall == pytest.approx(2 / 4)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert exact_match_score("left upper lobe", "left left lung") == pytest.approx(1 / 3)


def test_repeating_a_right_word_raises_recall_as_it_did() -> None:
    assert overlap("left lung", "left").recall == pytest.approx(1 / 2)
    assert overlap("left lung", "left left left").recall == pytest.approx(3 / 4)


def test_an_empty_answer_scores_nothing() -> None:
    assert set(score_item(AnswerType.OPEN, "lung", "").values()) == {0.0}
    assert set(score_item(AnswerType.CLOSED, "yes", "").values()) == {0.0}


@given(st.sampled_from(AnswerType), ANSWERS, ANSWERS)
@settings(max_examples=100, deadline=None)
def test_every_score_is_a_share_and_strict_never_beats_lenient(kind: AnswerType, reference: str, prediction: str) -> None:
    scores = score_item(kind, reference, prediction)
    assert set(scores) == {name for name, metric in METRICS.items() if metric.answer_type is kind}
    assert all(0 <= score <= 1 for score in scores.values())
    if kind is AnswerType.CLOSED:
        assert scores["closed_accuracy"] <= scores["closed_accuracy_contains"]
        assert scores["closed_accuracy_yes_no"] <= scores["closed_accuracy_contains"]


@given(st.text(alphabet="ab no-,5 the()", max_size=20))
@settings(max_examples=100, deadline=None)
def test_an_answer_equals_itself(text: str) -> None:
    assert equal(text, text) == 1

"""Scores of one answer against its reference: the published rules as they were run, and a strict twin beside each.

1. `normalise` is the published normaliser of LLaVA-Med's evaluation (v1.0.0, VQA-v2 style), with its quirks.
2. Every metric of `METRICS` is a function (reference, prediction) -> a number in [0, 1] for *one* item, so that intervals and paired
   comparisons can be made from the items.
3. `score_item` gives all metrics that apply to a closed or an open question.

Published rules keep their known defects, since their numbers are compared with published tables: "no" is found in "normal", and an
answer that says both "yes" and "no" is right for either. The strict twins ask for equality. Headline numbers are strict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from model.data.records import AnswerType

MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""Characters that the normaliser takes out, each by the same rule."""
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
POINT = re.compile(r"\.(?!\d)")
MAX_POINTS = 32
"""The original hands re.UNICODE (32) to `re.sub` where the count belongs: only so many points are removed."""
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1)
}
ARTICLES = frozenset({"a", "an", "the"})
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
    how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
    'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
"""Right forms of the published contraction map; its wrong forms are these with one apostrophe missing. Its capitalised entries (Im,
Ive, Id've) are left out: the text is lower-case by then, so they never match."""


def _wrong_forms() -> dict[str, str]:
    """Wrong form -> right form of every contraction."""
    found = {"somebody'd": "somebodyd"}  # The published map has this one the other way round.
    for right in APOSTROPHES.split():
        found |= {right[:place] + right[place + 1 :]: right for place, letter in enumerate(right) if letter == "'"}
    return found


CONTRACTIONS = _wrong_forms()


@lru_cache(maxsize=16_384)
def normalise(text: str) -> str:
    """The published normal form of an answer (LLaVA-Med v1.0.0, llava/eval/eval_metrics/glossary.py).

    A mark is deleted if it touches a space anywhere in `text`, or if `text` has a comma between digits; else it becomes a space.
    Both are looked up in the text as given, not in the one already changed. Then points not followed by a digit go, the text becomes
    lower-case, number words up to ten become digits, articles go and contractions get their apostrophe.
    """
    delete_all = DIGIT_COMMA_DIGIT.search(text) is not None
    changed = text
    for mark in MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if delete_all or touches_space else " ")
    words = POINT.sub("", changed, count=MAX_POINTS).lower().split()
    kept = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ARTICLES)


def contains(reference: str, prediction: str) -> float:
    """1 if the normal form of the reference is a substring of the prediction's (run_eval_batch.py).

    Trap: "no" is found in "normal", and a reference that is only an article is found in everything.
    """
    return float(normalise(reference) in normalise(prediction))


def contains_guarded(reference: str, prediction: str) -> float:
    """As `contains`, but only a prediction with "yes" or "no" in it counts (run_eval.py).

    Trap: closed questions with another answer (left/right) score 0 unless the prediction happens to hold "no" or "yes".
    """
    said = normalise(prediction)
    return float(("yes" in said or "no" in said) and normalise(reference) in said)


def equal(reference: str, prediction: str) -> float:
    """1 if the normal forms are equal: the strict twin of `contains`.

    A reference that the normaliser erases (the answer "A") is compared as written instead: else it would equal an empty answer.
    """
    wanted = normalise(reference)
    if not wanted:
        return float(reference.strip().casefold() == prediction.strip().casefold())
    return float(wanted == normalise(prediction))


@dataclass(frozen=True)
class Overlap:
    """Tokens of the prediction found in the reference, under the published multiset rule."""

    precision: float
    recall: float
    f1: float


def overlap(reference: str, prediction: str) -> Overlap:
    """Precision, recall and F1 over token multisets (LLaVA-Med v1.0.0, evaluate_metrics.py: calculate_f1score).

    tp = prediction counts of shared tokens, fp = prediction counts of the others, fn = reference counts of tokens not predicted.
    Trap: tp counts the *prediction's* repetitions, so saying a right word twice raises recall.
    """
    wanted, said = Counter(normalise(reference).split()), Counter(normalise(prediction).split())
    tp = sum(count for token, count in said.items() if token in wanted)
    fn = sum(count for token, count in wanted.items() if token not in said)
    if tp == 0:
        return Overlap(0.0, 0.0, 0.0)
    precision, recall = tp / said.total(), tp / (tp + fn)
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))


def exact_match_score(reference: str, prediction: str) -> float:
    """Distinct reference tokens found in the prediction / tokens of the prediction (calculate_exactmatch). Not an equality."""
    wanted, said = set(normalise(reference).split()), normalise(prediction).split()
    return len(wanted.intersection(said)) / len(said) if said else 0.0


@dataclass(frozen=True)
class Metric:
    """A score of one item, and what a reader must know about it."""

    name: str
    title: str
    answer_type: AnswerType
    """The questions it applies to."""
    strict: bool
    """False for a published rule that is kept with its defects."""
    note: str
    score: Callable[[str, str], float]
    """(reference, prediction) -> a number in [0, 1]."""


def _table(*metrics: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


CLOSED, OPEN = AnswerType.CLOSED, AnswerType.OPEN
METRICS = _table(
    Metric("closed_accuracy", "Closed accuracy", CLOSED, True, "answer equals the reference after normalisation", equal),
    Metric(
        "closed_accuracy_contains",
        "Closed accuracy, contains",
        CLOSED,
        False,
        "published: reference is a substring of the answer, so “no” counts in “normal”",
        contains,
    ),
    Metric(
        "closed_accuracy_yes_no",
        "Closed accuracy, yes/no only",
        CLOSED,
        False,
        "published: as contains, but only answers with “yes” or “no” in them count",
        contains_guarded,
    ),
    Metric("open_accuracy", "Open accuracy", OPEN, True, "answer equals the reference after normalisation", equal),
    Metric(
        "open_recall",
        "Open recall",
        OPEN,
        False,
        "published: the papers' headline for open questions, share of reference tokens found; long answers help",
        lambda reference, prediction: overlap(reference, prediction).recall,
    ),
    Metric(
        "open_precision",
        "Open precision",
        OPEN,
        False,
        "published: share of answer tokens found in the reference",
        lambda reference, prediction: overlap(reference, prediction).precision,
    ),
    Metric(
        "open_f1",
        "Open F1",
        OPEN,
        False,
        "published: harmonic mean of open precision and recall, item by item",
        lambda reference, prediction: overlap(reference, prediction).f1,
    ),
    Metric(
        "open_exact_match_score",
        "Open exact-match score",
        OPEN,
        False,
        "published: distinct reference tokens found / tokens of the answer; not an equality",
        exact_match_score,
    ),
)
"""Every metric by name."""


def score_item(answer_type: AnswerType, reference: str, prediction: str) -> dict[str, float]:
    """Metric name -> score in [0, 1], for the metrics that apply to `answer_type`."""
    return {m.name: m.score(reference, prediction) for m in METRICS.values() if m.answer_type is answer_type}

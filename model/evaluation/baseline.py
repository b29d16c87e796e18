"""The majority answer: what one scores without model and image, from the training answers alone.

`Majority.of(training records)` counts answers by the wording of the question, by question type and overall, each for closed and
open questions apart. `by_question` gives the most frequent answer of the narrowest of these that the training has seen; `overall`
always the most frequent of all. Answers are counted in their normal form; of equally frequent ones the alphabetically first wins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

from model.data.records import AnswerType, Record
from model.evaluation.metrics import normalise


@dataclass(frozen=True)
class Majority:
    """Most frequent training answers."""

    answers: dict[Hashable, str]
    """(answer type, "wording" | "type" | "all", wording or type) -> answer."""

    @staticmethod
    def of(records: Iterable[Record]) -> Majority:
        """Count the answers of questions; records without an answer type are passed over."""
        counts: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
        for record in records:
            if record.answer_type is not None:
                # Some answers ("A") have an empty normal form; they stand for themselves.
                answer = normalise(record.answer) or record.answer.strip()
                for key in _keys(record, record.answer_type):
                    counts[key][answer] += 1
        return Majority({key: min(found, key=lambda a: (-found[a], a)) for key, found in counts.items()})

    def by_question(self, record: Record) -> str:
        """Most frequent answer for this wording, else this question type, else of all; empty if nothing fits."""
        return next((self.answers[key] for key in _keys(record, record.answer_type) if key in self.answers), "")

    def overall(self, record: Record) -> str:
        """Most frequent answer of all questions of this answer type; empty if there were none."""
        return self.answers.get((record.answer_type, "all", ""), "")


def _keys(record: Record, answer_type: AnswerType | None) -> Iterator[Hashable]:
    """From narrow to wide."""
    yield answer_type, "wording", normalise(record.question)
    yield answer_type, "type", record.question_type
    yield answer_type, "all", ""

from __future__ import annotations

from model.data.records import AnswerType, Record, Role, Turn
from model.evaluation.baseline import Majority
from tests.model.evaluation.tiny_reports import question


def asked(text: str, answer: str, kind: str = "presence", answer_type: AnswerType = AnswerType.CLOSED) -> Record:
    turns = (Turn(role=Role.USER, text=text), Turn(role=Role.ASSISTANT, text=answer))
    return question(0).model_copy(update={"turns": turns, "question_type": kind, "answer_type": answer_type})


def test_the_narrowest_kind_of_question_that_training_knows_decides() -> None:
    training = [asked("Is it?", "yes"), asked("Is it?", "Yes."), asked("Is it?", "no")]
    training += [asked("Where?", "left", "side")] * 2 + [asked("What side?", "right", "side")] * 3
    training += [asked("Name it.", "lung", "organ", AnswerType.OPEN)]
    majority = Majority.of(training)
    assert majority.by_question(asked("is it", "?")) == "yes"
    assert majority.by_question(asked("Where?", "?", "side")) == "left"
    assert majority.by_question(asked("Which side then?", "?", "side")) == "right"
    assert majority.by_question(asked("Never heard", "?", "new")) == "right"
    assert majority.overall(asked("Is it?", "?")) == "right"
    assert majority.overall(asked("Is it?", "?", answer_type=AnswerType.OPEN)) == "lung"


def test_without_training_the_answer_is_empty() -> None:
    assert Majority.of([]).by_question(asked("Is it?", "yes")) == ""


def test_of_equally_frequent_answers_the_first_by_alphabet_wins_in_any_order() -> None:
    training = [asked("Is it?", "yes"), asked("Is it?", "no")]
    assert Majority.of(training).by_question(training[0]) == "no"
    assert Majority.of(training[::-1]).by_question(training[0]) == "no"

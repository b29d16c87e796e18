"""Rows of VQA-RAD as they are published, mended where the meaning is certain and refused where it is not.

Every repair is counted by its reason, so that the lineage of a model can say what was changed in its data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from model.data import reserved
from model.data.records import AnswerType

NULL = "null"
ORGANS = ("abd", "chest", "head")
QUESTION_TYPES = {
    "PRES": "presence",
    "POS": "position",
    "ABN": "abnormality",
    "SIZE": "size",
    "MODALITY": "modality",
    "ATTRIB": "attribute",
    "PLANE": "plane",
    "COLOR": "color",
    "ORGAN": "organ",
    "COUNT": "count",
    "OTHER": "other",
}
MISSPELLED_TYPES = {"ATRIB": "ATTRIB", "Other": "OTHER", "PRSE": "PRES", "ABD": "ABN"}


class Repair(StrEnum):
    """What was mended in a row, or left out of it."""

    NUMBER_AS_TEXT = "number_as_text"
    """An answer or id given as a number."""
    SPACES = "spaces"
    """Spaces around a text, or several in a row inside it."""
    ANSWER_TYPE_SPELLING = "answer_type_spelling"
    QUESTION_TYPE_SPELLING = "question_type_spelling"
    QUESTION_TYPE_UNKNOWN = "question_type_unknown"
    """Counted as `other`."""
    QUESTION_TYPE_ORDER = "question_type_order"
    """Several types in one question, brought into alphabetical order."""
    RESERVED_TOKEN_ESCAPED = "reserved_token_escaped"
    QID_REPEATED = "qid_repeated"
    """The same number for two questions of one file: the second gets a suffix."""
    FRAME_ADDED = "frame_added"
    """The row's own `question_frame` became a question of the training split, as in the split that everyone uses."""


class Aside(StrEnum):
    """Why a row is not imported."""

    NOT_AN_OBJECT = "not_an_object"
    FIELD_MISSING = "field_missing"
    BLANK_QUESTION = "blank_question"
    BLANK_ANSWER = "blank_answer"
    ANSWER_TYPE = "answer_type"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    UNSAFE_PATH = "unsafe_path"
    TEXT_TOO_LONG = "text_too_long"


class SetAside(Exception):
    """A row that is not imported, with the reason: a decision, not a failure."""

    def __init__(self, reason: Aside) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Row:
    """One question about one image."""

    qid: str
    image: str
    """File name inside the image folder."""
    organ: str
    """abd, chest or head; empty if unknown."""
    question: str
    answer: str
    answer_type: AnswerType
    question_type: str
    phrase: str
    """freeform, para or frame."""
    for_test: bool
    """By the row's own phrase type; the files of the usual split overrule it."""
    frame: str
    """The template that the question was written from; empty if there is none."""


def read_row(raw: Any, position: int, repairs: Counter[str]) -> Row:
    """One published row. SetAside if its meaning is not certain.

    Args:
        raw: An element of the published list.
        position: Its index, the id of a row that has none.
        repairs: Repairs of all rows so far; those of this row are added if it is imported.
    """
    if not isinstance(raw, dict):
        raise SetAside(Aside.NOT_AN_OBJECT)
    if any(raw.get(name) is None for name in ("image_name", "question", "answer")):
        raise SetAside(Aside.FIELD_MISSING)
    done: Counter[str] = Counter()
    question, answer = _text(raw["question"], done), _text(raw["answer"], done)
    if not question or question.lower() == NULL:
        raise SetAside(Aside.BLANK_QUESTION)
    if not answer or answer == NULL.upper():
        raise SetAside(Aside.BLANK_ANSWER)
    phrase = _text(raw.get("phrase_type", "freeform"), done)
    frame = _text(raw.get("question_frame") or "", done)
    row = Row(
        qid=str(raw.get("qid", f"row{position}")).strip(),
        image=_text(raw["image_name"], done),
        organ=_organ(_text(raw.get("image_organ") or "", done)),
        question=question,
        answer=answer,
        answer_type=_answer_type(raw.get("answer_type"), done),
        question_type=_question_type(raw.get("question_type") or "", done),
        phrase=phrase.removeprefix("test_"),
        for_test=phrase.startswith("test_"),
        frame="" if frame.lower() == NULL else frame,
    )
    repairs.update(+done)  # the plus drops what was looked at and found right
    return row


def _text(value: Any, done: Counter[str]) -> str:
    """Trimmed, single-spaced, without reserved tokens. A list, object or truth value is no text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        done[Repair.NUMBER_AS_TEXT] += 1
        value = str(value)
    if not isinstance(value, str):
        raise SetAside(Aside.FIELD_MISSING)
    text = " ".join(value.split())
    done[Repair.SPACES] += text != value
    escaped = reserved.escape(text)
    done[Repair.RESERVED_TOKEN_ESCAPED] += escaped != text
    return escaped


def _organ(text: str) -> str:
    return text.lower() if text.lower() in ORGANS else ""


def _answer_type(value: Any, done: Counter[str]) -> AnswerType:
    name = str(value).strip().lower()
    if name not in tuple(AnswerType):
        raise SetAside(Aside.ANSWER_TYPE)
    done[Repair.ANSWER_TYPE_SPELLING] += str(value) != name.upper()
    return AnswerType(name)


def _question_type(value: Any, done: Counter[str]) -> str:
    """`PRES, POS` -> `position+presence`: full words in alphabetical order, the order of the file carries no meaning."""
    parts = [part.strip() for part in str(value).split(",") if part.strip()]
    words = []
    for part in parts:
        known = MISSPELLED_TYPES.get(part, part)
        done[Repair.QUESTION_TYPE_SPELLING] += known != part
        done[Repair.QUESTION_TYPE_UNKNOWN] += known not in QUESTION_TYPES
        words.append(QUESTION_TYPES.get(known, "other"))
    done[Repair.QUESTION_TYPE_ORDER] += words != sorted(words)
    return "+".join(sorted(set(words))) or "other"

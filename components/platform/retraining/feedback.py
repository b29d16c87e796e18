"""Corrections that people wrote down: a JSONL file that only grows, read strictly.

    {"id": "c-17", "set": "phantom", "record": "train-12-q", "problem": "wrong_answer", "by": "reader-3", "time": "2026-05-04T09:30:00Z"}

1. `read` checks every line and counts; the text of a correction, if there is one, is looked at by nobody here.
2. What was counted before must still be there, byte for byte: `Feedback.digest` covers the lines so far, and a file whose beginning
   changed is refused. So a line counts once, and no correction vanishes between two trainings.
3. `corrections` gives the lines themselves to whoever makes a data set of them (components/data/corrections.py).
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from model.config.choices import Strict
from model.data import strict_json
from model.data.strict_json import FlawError
from model.errors import DataError, MissingInputError, RefusedError

HINT = "components/platform/retraining/feedback.py describes the lines"


class Problem(StrEnum):
    """What was wrong."""

    WRONG_ANSWER = "wrong_answer"
    """The assistant's answer."""
    WRONG_REFERENCE = "wrong_reference"
    """The answer in the data set."""
    BAD_QUESTION = "bad_question"
    """It cannot be answered, or not from this image."""
    BAD_IMAGE = "bad_image"


class Correction(Strict):
    """One line."""

    id: Annotated[str, Field(min_length=1, max_length=150)]
    """Unique in the file."""
    set: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    record: Annotated[str, Field(min_length=1, max_length=200)]
    problem: Problem
    answer: Annotated[str, Field(max_length=20_000)] = ""
    """What would be right, if the person knew."""
    by: Annotated[str, Field(min_length=1, max_length=100)]
    time: datetime.datetime


class Feedback(Strict):
    """How much of the file there is."""

    lines: int = 0
    digest: str = hashlib.sha256(b"").hexdigest()
    """SHA-256 of the bytes of these lines."""


def read(path: Path, counted: Feedback = Feedback()) -> Feedback:
    """What the file holds now.

    Args:
        path: The file.
        counted: What it held at the last training.

    Raises:
        MissingInputError: There is none, and there was one. DataError: A line is not as it must be, named by its number.
        RefusedError: What was counted is no longer there as it was.
    """
    if not path.is_file():
        if not counted.lines:
            return Feedback()
        raise MissingInputError(f"no feedback file {path}, of which {counted.lines} lines were counted", "bring it back")
    total, found = hashlib.sha256(), Feedback()
    for number, line, _ in _lines(path):
        total.update(line)
        found = Feedback(lines=number, digest=total.hexdigest())
        if number == counted.lines and found.digest != counted.digest:
            raise _rewritten(path, counted)
    if found.lines < counted.lines:
        raise _rewritten(path, counted)
    return found


def corrections(path: Path) -> list[Correction]:
    """All lines. DataError as `read`."""
    return [correction for _, _, correction in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, bytes, Correction]]:
    known: set[str] = set()
    for number, line in strict_json.lines(path):
        if isinstance(line, FlawError):
            raise DataError(f"{path}:{number}: {line.detail} ({line.flaw})", HINT)
        correction = _correction(path, number, line)
        if correction.id in known:
            raise DataError(f"{path}:{number}: its id stands in an earlier line, too", "give each correction its own id")
        known.add(correction.id)
        yield number, line, correction


def _correction(path: Path, number: int, line: bytes) -> Correction:
    try:
        if not line.endswith(b"\n"):
            raise DataError(f"{path}:{number}: the line has no end", "whoever writes it may not be done; try again later")
        return Correction.model_validate(strict_json.parse(line))
    except FlawError as flaw:
        raise DataError(f"{path}:{number}: {flaw.detail} ({flaw.flaw})", HINT) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # The name of an unknown field comes from the file, and may be anything.
        field = str(first["loc"][0]) if first["loc"] and first["loc"][0] in Correction.model_fields else "an unknown field"
        raise DataError(f"{path}:{number}: {field}: {first['msg']}", HINT) from None


def _rewritten(path: Path, counted: Feedback) -> RefusedError:
    return RefusedError(
        f"the first {counted.lines} lines of {path} are not those that were counted at the last training",
        "the file may only grow: restore it, and write what is to be taken back as a line of its own",
    )

"""JSON from strangers: what the standard parser lets through and we do not.

Refused: bytes that are not UTF-8, NaN and infinity, a key twice in an object, nesting deeper than `MAX_DEPTH`, integers of more
than 18 digits, halves of surrogate pairs. A complaint names its reason by a `Flaw` and its place, never the content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.errors import DataError, MissingInputError

MAX_DEPTH = 32
MAX_DIGITS = 18
MAX_LINE_BYTES = 2**20


class Flaw(StrEnum):
    """Reasons for which a record is set aside. The first group is about the line, then the record, then its images."""

    UTF8 = "utf8"
    """Bytes that are not UTF-8."""
    BLANK_LINE = "blank_line"
    LONG_LINE = "long_line"
    """More than `MAX_LINE_BYTES`."""
    JSON = "json"
    """Not JSON: a trailing comma, a missing bracket, a byte order mark."""
    NOT_FINITE = "not_finite"
    """NaN or infinity."""
    DUPLICATE_KEY = "duplicate_key"
    DEEP = "deep"
    HUGE_INT = "huge_int"
    SURROGATE = "surrogate"
    """Half of a surrogate pair, which no file can be written with."""
    SCHEMA = "schema"
    """A field is missing, unknown or of another type; not an object; turns that do not alternate."""
    RESERVED_TOKEN = "reserved_token"
    """Text that a tokenizer would read as control."""
    UNSAFE_PATH = "unsafe_path"
    """An image path that leaves the folder of the data set."""
    IMAGE_MISSING = "image_missing"
    """An image that is not there, or not listed in the manifest."""
    IMAGE_BROKEN = "image_broken"
    IMAGE_FORMAT = "image_format"
    IMAGE_TOO_LARGE = "image_too_large"


class FlawError(Exception):
    """One flaw at one place; becomes a `Finding` or a DataError. `detail` holds no content."""

    def __init__(self, flaw: Flaw, detail: str) -> None:
        super().__init__(f"{flaw}: {detail}")
        self.flaw = flaw
        self.detail = detail


def parse(raw: bytes) -> Any:
    """The value of a JSON document. FlawError for everything that the module refuses; `detail` names line and column."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FlawError(Flaw.UTF8, f"line {line}, byte {error.start} is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise FlawError(Flaw.JSON, "starts with a byte order mark")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer, parse_float=_float)
    except json.JSONDecodeError as error:
        raise FlawError(Flaw.JSON, f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise FlawError(Flaw.DEEP, f"nested deeper than {MAX_DEPTH}") from None
    if _depth(value) > MAX_DEPTH:
        raise FlawError(Flaw.DEEP, f"nested deeper than {MAX_DEPTH}")
    if "\\u" in text and not _encodable(value):
        raise FlawError(Flaw.SURROGATE, "half of a surrogate pair")
    return value


def read_document(path: Path) -> Any:
    """The value of a whole JSON file.

    Raises:
        MissingInputError: There is no such file.
        DataError: It is refused; file and line are named.
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"no file {path}", "give the folder that holds the published files") from None
    except FlawError as error:
        raise DataError(f"{path}: {error.detail} ({error.flaw})", "fetch the file again, or mend that line") from None


def lines(path: Path) -> Iterator[tuple[int, bytes | FlawError]]:
    """Number (from 1) and bytes of each line of a JSONL file; a line that is too long comes as its flaw, without its bytes."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) <= MAX_LINE_BYTES:
                yield number, line
                continue
            # Skip to the end of the line in pieces: it never stands in memory as a whole.
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            yield number, FlawError(Flaw.LONG_LINE, f"more than {MAX_LINE_BYTES:,} bytes")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FlawError(Flaw.DUPLICATE_KEY, "a key stands twice in one object")
    return result


def _constant(name: str) -> Any:
    raise FlawError(Flaw.NOT_FINITE, f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise FlawError(Flaw.HUGE_INT, f"an integer of {len(digits):,} characters")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise FlawError(Flaw.NOT_FINITE, "a number too large for a float")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, counted only as far as needed to know that there are too many."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level, depth = below, depth + 1
    return depth


def _encodable(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(_encodable(key) and _encodable(item) for key, item in value.items())
    return all(_encodable(item) for item in value) if isinstance(value, list) else True

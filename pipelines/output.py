"""How the command speaks: data to stdout, everything else to stderr, errors as a short letter."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model.errors import BiovlmError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 80
"""Columns where there is no terminal to ask."""


def emit(text: str) -> None:
    """A line of data."""
    sys.stdout.write(f"{text}\n")


def emit_json(value: Any) -> None:
    """Data for programs."""
    emit(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str))


def emit_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Data for people, as `table`."""
    for line in table(columns, rows):
        emit(line)


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines as wide as they need, without lines around, so that they can be read by programs, too."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (columns, *rows)]


def say(text: str) -> None:
    """A line that is not data."""
    sys.stderr.write(f"{text}\n")


def letter(error: BiovlmError) -> None:
    """The letter of an error: what failed, and the way out."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def show(what: RenderableType) -> None:
    """Something drawn, that is not data."""
    console().print(what)


def console() -> Console:
    """The console on stderr."""
    from rich.console import Console  # a sixth of a second that most commands do without

    return Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH, highlight=False)

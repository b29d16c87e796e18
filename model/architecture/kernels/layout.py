"""How attention lays out the heads of a document: rows of their own, turned by their positions, as its tiles read them.

1. A head's rows have whole lines of 16 numbers, those behind its width zero, and room for some rows more.
2. The projections wrote all heads of a token side by side. One head of them is a strip too far apart for a processor to guess what
   comes next, so it is told: without that, a seventh of attention was waiting for memory.

N tokens, width d of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.architecture.kernels.compiling import compiled
from model.architecture.kernels.pointwise import F0, F1
from model.architecture.kernels.tile import COLUMNS, ROWS, fetch

AHEAD = 8
"""Rows."""


@compiled
def whole_lines(d: int) -> int:
    """Numbers of whole lines: what products over a head's width go over."""
    return (d + COLUMNS - 1) // COLUMNS * COLUMNS


@compiled
def whole_tiles(rows: int) -> int:
    """Rows of whole tiles, `rows` or some more."""
    return (rows + ROWS - 1) // ROWS * ROWS


@compiled
def room(tokens: int, d: int) -> Any:
    """For the rows of a head and some more, zero; an odd number of lines each, so that rows do not push each other out of a cache."""
    return np.zeros((whole_lines(tokens) + COLUMNS, COLUMNS * (whole_lines(d) // COLUMNS | 1)), np.float32)


@compiled
def scaled(x: Any, by: Any, out: Any) -> None:
    """out = by x, as far as x goes."""
    for j in range(x.shape[0]):
        out[j] = x[j] * by


@compiled
def _fetch_ahead(x: Any, row: int, column: int, width: int) -> None:
    """Ask for a row that is soon to come: one head of all rows is too far apart for a processor to guess it."""
    at = (row + AHEAD) * x.shape[1] + column
    for place in range(at, at + width, COLUMNS):
        fetch(x, place)


@compiled
def gather(x: Any, start: int, length: int, column: int, cos: Any, sin: Any, out: Any) -> None:
    """Rows of one head out of (N, width), turned by their positions: rotary embeddings (Su and others 2021)."""
    half = cos.shape[1] // 2
    for t in range(length):
        _fetch_ahead(x, start + t, column, 2 * half)
        line, c, s, turned = x[start + t], cos[start + t], sin[start + t], out[t]
        one, two, last = line[column : column + half], line[column + half :], turned[half:]
        for j in range(half):
            turned[j] = one[j] * c[j] - two[j] * s[j]
        for j in range(half):
            last[j] = two[j] * c[j] + one[j] * s[j]


@compiled
def scatter(x: Any, start: int, length: int, column: int, cos: Any, sin: Any, out: Any) -> None:
    """The gradient of `gather`: turned back, into (N, width)."""
    half = cos.shape[1] // 2
    for t in range(length):
        _fetch_ahead(out, start + t, column, 2 * half)
        line, c, s, turned = x[t], cos[start + t], sin[start + t], out[start + t]
        two, first, last = line[half:], turned[column : column + half], turned[column + half :]
        for j in range(half):
            first[j] = line[j] * c[j] + two[j] * s[j]
        for j in range(half):
            last[j] = two[j] * c[j] - line[j] * s[j]


@compiled
def copy(x: Any, start: int, length: int, column: int, d: int, out: Any) -> None:
    """Rows of one head as they are."""
    for t in range(length):
        _fetch_ahead(x, start + t, column, d)
        scaled(x[start + t, column : column + d], F1, out[t])


@compiled
def side_by_side(rows: Any, length: int, terms: int, panels: Any) -> None:
    """Tokens as columns: 16 of them make a panel (terms, 16), the panels one behind the other."""
    for t in range(0, length, COLUMNS):
        panel = panels[t * terms : (t + COLUMNS) * terms].reshape((terms, COLUMNS))
        for k in range(terms):
            for lane in range(COLUMNS):
                panel[k, lane] = rows[t + lane, k]


@compiled
def along(x: Any, y: Any, start: int, column: int, width: int, alongs: Any) -> None:
    """Products of the rows of one head with those of another array."""
    for t in range(alongs.shape[0]):
        _fetch_ahead(y, start + t, column, width)
        one, two = x[t], y[start + t, column : column + width]
        total = F0
        for j in range(two.shape[0]):
            total += one[j] * two[j]
        alongs[t] = total

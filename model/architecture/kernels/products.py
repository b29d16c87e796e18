"""Products of many tokens with a weight and its update, `x (W + s B A)`, in float32 on a CPU.

1. A weight is laid out in panels of 16 columns, the order in which a tile reads it, and gets its update on the way: so neither a merged
   weight nor a copy of it is written.
2. Tokens are read where they lie, a few that fit into a cache at a time, by all panels.

A library copies both sides into an order of its own at every call. Between other work, with cold caches, it has less to do them with.

N tokens, K terms, C columns, r rank.
"""

from __future__ import annotations

from typing import Any

from model.architecture.kernels.compiling import compiled
from model.architecture.kernels.pointwise import F1
from model.architecture.kernels.tile import COLUMNS, ROWS, single, tile

BLOCK = 48
"""Tokens whose inputs stay in a cache together."""
DEPTH, GROUP = 1536, 32
"""Terms and panels that tokens are multiplied by before the next ones are fetched: of a large weight, what fits into a cache."""


@compiled
def strip(left: Any, right: Any, column: int, out: Any, place: int, scale: Any, kept: bool) -> None:
    """16 columns of a product from `column` of `right` on, to `place` of `out`: scale left right (+ out).

    (M, K) in any order by (K, C), both last with contiguous rows.
    """
    count, line, out_row = right.shape[0], right.strides[0] // 4, out.strides[0] // 4
    row, term = left.strides[0] // 4, left.strides[1] // 4
    tiled = left.shape[0] // ROWS * ROWS
    for r in range(0, tiled, ROWS):
        tile(left, r * row, row, term, right, column, line, out, r * out_row + place, out_row, count, scale, kept)
    for r in range(tiled, left.shape[0]):
        single(left, r * row, row, term, right, column, line, out, r * out_row + place, out_row, count, scale, kept)


@compiled
def lay(first: int, last: int, weight: Any, scale: Any, left: Any, right: Any, panels: Any) -> None:
    """Panels [first, last) of weight + scale left right.

    Args:
        first: Number of a panel.
        last: Number behind it.
        weight: (K, C) in any order, C whole lines of 16.
        scale: Of the update.
        left: (K, r) in any order; r may be 0.
        right: (r, C) with contiguous rows.
        panels: (C / 16, K, 16), written.
    """
    for number in range(first, last):
        panel, columns = panels[number], weight[:, number * COLUMNS : (number + 1) * COLUMNS]
        for k in range(len(panel)):
            for lane in range(COLUMNS):
                panel[k, lane] = columns[k, lane]
        strip(left, right, number * COLUMNS, panel, 0, scale, True)


@compiled
def multiply(first: int, last: int, x: Any, panels: Any, out: Any, kept: bool) -> None:
    """out = x by what was laid in panels (+ out), of blocks [first, last) of `BLOCK` tokens: (N, K) to (N, C)."""
    for low in range(0, x.shape[1], DEPTH):
        high = min(low + DEPTH, x.shape[1])
        for group in range(0, len(panels), GROUP):
            for block in range(first, last):
                start, end = block * BLOCK, min(len(x), (block + 1) * BLOCK)
                for number in range(group, min(group + GROUP, len(panels))):
                    part = panels[number, low:high]
                    strip(x[start:end, low:high], part, 0, out[start:end], number * COLUMNS, F1, kept or low > 0)

"""Attention of documents and branches in float32 on a CPU, with its backward pass, as FlashAttention-2 orders it (Dao 2023).

1. It takes queries, keys and values as projections write them, turns them by their positions, and computes every document by itself,
   head by head: blocks of rows against blocks of the keys that they may see, the softmax in between in the processor's caches.
   Nothing of T x T is kept.
2. Tiles that no row may see are not computed. In those that are, what a row may not see is 0 before it is used.
3. Of keys, and in the backward pass of values, there are also panels, in which 16 tokens stand side by side (`layout`).

Arrays are C-contiguous float32 unless said otherwise. `Any` stands for an array or a float32: the compiler finds the types itself.

N tokens of all documents, H heads of queries and G of keys of width d, D documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.architecture.kernels.compiling import compiled
from model.architecture.kernels.layout import along, copy, gather, room, scaled, scatter, side_by_side, whole_lines, whole_tiles
from model.architecture.kernels.pointwise import F0, F1, F32, LOG2_E, power
from model.architecture.kernels.tile import COLUMNS, ROWS, tile

BLOCK, KEYS = 60, 384
"""Rows and keys of a block: its scores stay in a hundred kilobytes of cache. Multiples of a tile's rows and columns."""
SCORES = KEYS + COLUMNS
"""Numbers from one row of scores to the next, some more than there are keys."""
LOWEST = F32(-3e38)
SIGN, REST, LEAST_WHOLE = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-0x80000000)


@compiled
def _scores(rows: Any, top: int, count: int, panels: Any, begin: int, width: int, terms: int, scale: Any, out: Any) -> None:
    """out[r, j] = scale rows[top + r] . key[begin + j], in the tiles that hold a j <= top + r - begin."""
    stride = rows.shape[1]
    for j in range(0, width, COLUMNS):
        first = max(0, j - (top - begin)) // ROWS * ROWS
        for r in range(first, count, ROWS):
            tile(
                rows, (top + r) * stride, stride, 1, panels, (begin + j) * terms, COLUMNS, out, r * SCORES + j,
                SCORES, terms, scale, False,
            )  # fmt: skip


@compiled
def _weighted(
    scores: Any, top: int, count: int, values: Any, begin: int, width: int, terms: int, scale: Any, out: Any, at: int
) -> None:
    """out[at + r] += scale scores[r] values[begin:], as far as a row of the tile sees."""
    stride = values.shape[1]
    for column in range(0, terms, COLUMNS):
        for r in range(0, count, ROWS):
            seen, place = min(width, top - begin + r + ROWS), (at + r) * stride + column
            tile(scores, r * SCORES, SCORES, 1, values, begin * stride + column, stride, out, place, stride, seen, scale, True)


@compiled
def _collected(scores: Any, rows: Any, top: int, end: int, begin: int, width: int, terms: int, scale: Any, out: Any) -> None:
    """out[begin + j] += scale sum of scores[r, j] rows[top + r] over the rows that see j."""
    stride = rows.shape[1]
    for column in range(0, terms, COLUMNS):
        for j in range(0, width, ROWS):
            first = max(0, j - (top - begin))
            place, given = (begin + j) * stride + column, (top + first) * stride + column
            tile(scores, first * SCORES + j, 1, SCORES, rows, given, stride, out, place, stride, end - top - first, scale, True)


@compiled
def _largest(row: Any) -> Any:
    """Of a row that is not empty. As whole numbers, of which the order is the same: so the compiler takes eight at a time.

    NaN is larger than all, or with its sign set passed over: then the powers show it.
    """
    bits = row.view(np.int32)
    high = LEAST_WHOLE
    for j in range(bits.shape[0]):
        whole = np.int32(bits[j] ^ np.int32(np.int32(bits[j] >> SIGN) & REST))
        high = whole if whole > high else high
    return np.int32(high ^ np.int32(np.int32(high >> SIGN) & REST)).view(np.float32)


@compiled
def _powers(row: Any, high: Any) -> Any:
    """row = 2^(row - high), in place; their sum."""
    total = F0
    for j in range(row.shape[0]):
        e = power(row[j] - high)
        row[j] = e
        total += e
    return total


@compiled
def _chances(row: Any, grads: Any, log_total: Any, along: Any) -> None:
    """Scores become probabilities p, and their gradients g those of the scores, p (g - along), both in place."""
    for j in range(row.shape[0]):
        p = power(row[j] - log_total)
        row[j] = p
        grads[j] = p * (grads[j] - along)


@compiled
def _block(top: int, document: Any, opens: Any) -> Any:
    """Rows from `top` on that are computed together: the one behind them, keys of the trunk that they see, their first own key."""
    start, trunk, length = document
    end = min(top + BLOCK, trunk if top < trunk else length)
    return end, 0 if top < trunk else trunk, opens[start + top] - start


@compiled
def _see(row: int, begin: int, behind: int, own: bool, opens: Any, start: int) -> Any:
    """Of keys [begin, behind), of the trunk or of the row's own, those that a row may see, counted from `begin`."""
    low = max(begin, opens[start + row] - start) if own else begin
    return low - begin, max(low, min(behind, row + 1)) - begin


@compiled
def _soften(
    scores: Any, top: int, end: int, begin: int, behind: int, own: bool, opens: Any, start: int, highs: Any, totals: Any, found: Any,
) -> None:  # fmt: skip
    """Scores become powers, 0 where a row may not look; what was found before is made smaller where the highest score has grown."""
    for row in range(top, end):
        r, line = row - top, scores[row - top]
        first, last = _see(row, begin, behind, own, opens, start)
        line[:first] = F0
        line[last : behind - begin] = F0
        if first < last:
            high = _largest(line[first:last])
            high = highs[r] if highs[r] > high else high
            shrunk = power(highs[r] - high)
            totals[r] = totals[r] * shrunk + _powers(line[first:last], high)
            highs[r] = high
            scaled(found[r], shrunk, found[r])


@compiled
def _head(
    query: Any, panels: Any, value: Any, document: Any, opens: Any, scale: Any, scores: Any, found: Any, highs: Any, totals: Any,
    column: int, out: Any, log_totals: Any, d: int,
) -> None:  # fmt: skip
    """One head of a document: rows of `query` into `out` at a column, block by block."""
    start, _, length = document
    terms = whole_lines(d)
    top: Any = np.int64(0)
    while top < length:
        end, shared, opened = _block(top, document, opens)
        count = whole_tiles(end - top)
        highs[:], totals[:], found[:] = LOWEST, F0, F0
        for own in (False, True):
            low, limit = (opened // COLUMNS * COLUMNS, end) if own else (np.int64(0), shared)
            for begin in range(low, limit, KEYS):
                behind = min(begin + KEYS, limit)
                _scores(query, top, count, panels, begin, behind - begin, terms, scale * LOG2_E, scores)
                _soften(scores, top, end, begin, behind, own, opens, start, highs, totals, found)
                _weighted(scores, top, count, value, begin, behind - begin, terms, F1, found, 0)
        for r in range(end - top):
            log_totals[start + top + r] = highs[r] + np.log2(totals[r])
            scaled(found[r, :d], F1 / totals[r], out[start + top + r, column : column + d])
        top = end


@compiled
def attend(
    first: int, last: int, asking: Any, keys: Any, values: Any, cos: Any, sin: Any, documents: Any, opens: Any, scale: Any,
    out: Any, log_totals: Any,
) -> None:  # fmt: skip
    """Attention of the work [first, last): documents x heads of keys, heads innermost.

    Args:
        first: Number of work.
        last: Number behind it.
        asking: (N, H d) queries, the halves of a head that turn together one behind the other.
        keys: (N, G d).
        values: (N, G d).
        cos: (N, d) cosines of each token's position, both halves equal.
        sin: (N, d) sines.
        documents: (D, 3) int64 first token, tokens of the trunk, tokens.
        opens: (N,) int64 first token of each token's branch; of the trunk, the document's.
        scale: Of the scores.
        out: (N, H d), written.
        log_totals: (H, N), written: logarithm to base 2 of the sum of exponentials of each row, for `attend_back`.
    """
    d, longest = cos.shape[1], documents[:, 2].max()
    heads, groups = keys.shape[1] // d, asking.shape[1] // keys.shape[1]
    query, key, value = room(longest, d), room(longest, d), room(longest, d)
    panels = np.empty(query.shape[0] * whole_lines(d), np.float32)
    scores, found = np.empty((BLOCK, SCORES), np.float32), np.empty((BLOCK, query.shape[1]), np.float32)
    highs, totals = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for work in range(first, last):
        document, head = documents[work // heads], work % heads
        start, _, length = document
        gather(keys, start, length, head * d, cos, sin, key)
        side_by_side(key, length, whole_lines(d), panels)
        copy(values, start, length, head * d, d, value)
        for each in range(head * groups, (head + 1) * groups):
            gather(asking, start, length, each * d, cos, sin, query)
            _head(query, panels, value, document, opens, scale, scores, found, highs, totals, each * d, out, log_totals[each], d)


@compiled
def _soften_back(
    scores: Any, grads: Any, top: int, end: int, begin: int, behind: int, own: bool, opens: Any, start: int, log_totals: Any,
    alongs: Any,
) -> None:  # fmt: skip
    """Scores become probabilities, and the gradients of these those of the scores; 0 where a row may not look, and around the block."""
    around = behind - begin + COLUMNS
    for row in range(top, end):
        line, given = scores[row - top], grads[row - top]
        first, last = _see(row, begin, behind, own, opens, start)
        line[:first], given[:first] = F0, F0
        line[last:around], given[last:around] = F0, F0
        _chances(line[first:last], given[first:last], log_totals[start + row], alongs[row])
    grads[end - top : whole_tiles(end - top), :around] = F0


@compiled
def _head_back(
    query: Any, key: Any, panels: Any, value_panels: Any, given: Any, document: Any, opens: Any, scale: Any, scores: Any, grads: Any,
    log_totals: Any, alongs: Any, for_query: Any, for_key: Any, for_value: Any, d: int,
) -> None:  # fmt: skip
    """The gradients of one head, added to the last three; keys outermost, since four arrays of them are held and three of rows."""
    start, _, length = document
    terms = whole_lines(d)
    for low in range(0, length, KEYS):
        top: Any = np.int64(0)
        while top < length:
            end, shared, opened = _block(top, document, opens)
            count = whole_tiles(end - top)
            for own in (False, True):
                begin = max(low, opened // COLUMNS * COLUMNS) if own else low
                behind = min(low + KEYS, end if own else shared)
                if begin < behind:
                    width = behind - begin
                    _scores(query, top, count, panels, begin, width, terms, scale * LOG2_E, scores)
                    _scores(given, top, count, value_panels, begin, width, terms, F1, grads)
                    _soften_back(scores, grads, top, end, begin, behind, own, opens, start, log_totals, alongs)
                    _weighted(grads, top, count, key, begin, width, terms, scale, for_query, top)
                    _collected(grads, query, top, end, begin, width, terms, scale, for_key)
                    _collected(scores, given, top, end, begin, width, terms, F1, for_value)
            top = end


@compiled
def attend_back(
    first: int, last: int, asking: Any, keys: Any, values: Any, cos: Any, sin: Any, documents: Any, opens: Any, scale: Any,
    out: Any, log_totals: Any, for_out: Any, for_asking: Any, for_keys: Any, for_values: Any,
) -> None:  # fmt: skip
    """The gradients of `attend`, of the same work: `for_out` is read, the three behind it are written."""
    d, longest = cos.shape[1], documents[:, 2].max()
    heads, groups = keys.shape[1] // d, asking.shape[1] // keys.shape[1]
    query, key, value, given = room(longest, d), room(longest, d), room(longest, d), room(longest, d)
    for_query, for_key, for_value = room(longest, d), room(longest, d), room(longest, d)
    panels, value_panels = np.empty(len(query) * whole_lines(d), np.float32), np.empty(len(query) * whole_lines(d), np.float32)
    scores, grads = np.empty((BLOCK, SCORES), np.float32), np.empty((BLOCK, SCORES), np.float32)
    alongs = np.empty(longest, np.float32)
    for work in range(first, last):
        document, head = documents[work // heads], work % heads
        start, _, length = document
        gather(keys, start, length, head * d, cos, sin, key)
        side_by_side(key, length, whole_lines(d), panels)
        copy(values, start, length, head * d, d, value)
        side_by_side(value, length, whole_lines(d), value_panels)
        for_key[:], for_value[:] = F0, F0
        for each in range(head * groups, (head + 1) * groups):
            gather(asking, start, length, each * d, cos, sin, query)
            copy(for_out, start, length, each * d, d, given)
            along(given, out, start, each * d, d, alongs[:length])
            for_query[:] = F0
            _head_back(
                query, key, panels, value_panels, given, document, opens, scale, scores, grads, log_totals[each], alongs,
                for_query, for_key, for_value, d,
            )  # fmt: skip
            scatter(for_query, start, length, each * d, cos, sin, for_asking)
        scatter(for_key, start, length, head * d, cos, sin, for_keys)
        for_values[start : start + length, head * d : (head + 1) * d] = for_value[:length, :d]

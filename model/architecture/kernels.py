"""Kernels for float32 on a CPU: attention, SwiGLU and RMSNorm, each with its backward pass, each one pass over memory.

1. Attention takes queries, keys and values as projections write them, turns them by their positions, and computes every document by
   itself, head by head: blocks of rows against blocks of the keys that they may see, the softmax in between in the processor's caches
   (FlashAttention-2, Dao 2023). Nothing of T x T is kept, and a block that no row may see is not computed.
2. Exponentials are powers of two by a polynomial, which becomes instructions on eight numbers at a time. NaN and infinity stay what they
   are: a loss that is not finite must be seen.

Arrays are C-contiguous float32 unless said otherwise. `Any` stands for an array or a float32: the compiler finds the types itself.

N tokens of all documents, H heads of queries and G of keys of width d, D documents, W width, I inner width of an MLP.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from model.architecture.compiling import PRODUCT, compiled

ROWS, KEYS = 64, 384
"""Of a block: its scores, its keys and its values stay in half a megabyte of cache."""
LANES = 32
PLAIN, TURNED = ord("N"), ord("T")
"""How BLAS is to read a matrix."""
F32 = np.float32
F0, F1, HALF = F32(0), F32(1), F32(0.5)
LOG2_E, LOWEST = F32(1.44269504), F32(-3e38)
P1, P2, P3 = F32(0.693147206), F32(0.240226466), F32(0.05550329)
P4, P5, P6 = F32(0.00961851953), F32(0.00133998604), F32(0.000153375768)
"""Least squares on Chebyshev nodes, relative error 3e-9."""
LEAST, MOST = F32(-126), F32(126)
"""Exponents whose powers of two are normal numbers."""
BIAS, MANTISSA = np.int32(127), np.int32(23)

sgemm = types.ExternalFunction(PRODUCT, types.void(*[types.uintp] * 13))


@compiled
def _multiply(a: Any, a_form: int, b: Any, b_form: int, scale: Any, kept: Any, out: Any, said: Any) -> None:
    """out = scale op(a) op(b) + kept out, of matrices with contiguous rows; `said` (16,) int64 holds what Fortran wants by reference.

    BLAS reads columns: our rows are its columns, so it computes out' = op(b)' op(a)'.
    """
    inner = a.shape[1] if a_form == PLAIN else a.shape[0]
    said[0], said[1], said[2] = out.shape[1], out.shape[0], inner
    said[3], said[4], said[5] = b.strides[0] // 4, a.strides[0] // 4, out.strides[0] // 4
    said[6], said[7] = b_form, a_form
    floats = said.view(np.float32)
    floats[16], floats[18] = scale, kept  # each at eight bytes of its own
    at = said.ctypes.data
    sgemm(
        at + 48, at + 56, at, at + 8, at + 16, at + 64, b.ctypes.data, at + 24, a.ctypes.data, at + 32, at + 72,
        out.ctypes.data, at + 40,
    )  # fmt: skip


@compiled
def _power(x: Any) -> Any:
    """2^x: a polynomial on [-1/2, 1/2], within 2 units in the last place; no less than 2^-126, no more than 2^126."""
    x = LEAST if x < LEAST else x
    x = MOST if x > MOST else x
    n = np.floor(x + HALF)
    r = x - n
    y = (((((P6 * r + P5) * r + P4) * r + P3) * r + P2) * r + P1) * r + F1
    return y * np.int32((np.int32(n) + BIAS) << MANTISSA).view(np.float32)


@compiled
def _largest(row: Any, lanes: Any) -> Any:
    """Of a row that is not empty. NaN may be passed over: the powers show it."""
    count = row.shape[0]
    high = row[0]
    if count < LANES:
        for j in range(count):
            high = row[j] if row[j] > high else high
        return high
    for k in range(LANES):
        lanes[k] = row[count - LANES + k]
    for j in range(0, count - LANES, LANES):
        for k in range(LANES):
            lanes[k] = row[j + k] if row[j + k] > lanes[k] else lanes[k]
    for k in range(LANES):
        high = lanes[k] if lanes[k] > high else high
    return high


@compiled
def _powers(row: Any, high: Any) -> Any:
    """row = 2^(row - high), in place; their sum."""
    total = F0
    for j in range(row.shape[0]):
        e = _power(row[j] - high)
        row[j] = e
        total += e
    return total


@compiled
def _chances(row: Any, grads: Any, log_total: Any, along: Any) -> None:
    """Scores become probabilities p, and their gradients g those of the scores, p (g - along), both in place."""
    for j in range(row.shape[0]):
        p = _power(row[j] - log_total)
        row[j] = p
        grads[j] = p * (grads[j] - along)


@compiled
def _scale(x: Any, by: Any, out: Any) -> None:
    for j in range(x.shape[0]):
        out[j] = x[j] * by


@compiled
def _turn(given: Any, cos: Any, sin: Any, out: Any) -> None:
    """Rotary positions of one head of one token (Su and others 2021)."""
    half = given.shape[0] // 2
    for j in range(half):
        out[j] = given[j] * cos[j] - given[half + j] * sin[j]
    for j in range(half):
        out[half + j] = given[half + j] * cos[j] + given[j] * sin[j]


@compiled
def _turn_back(given: Any, cos: Any, sin: Any, out: Any) -> None:
    half = given.shape[0] // 2
    for j in range(half):
        out[j] = given[j] * cos[j] + given[half + j] * sin[j]
    for j in range(half):
        out[half + j] = given[half + j] * cos[j] - given[j] * sin[j]


@compiled
def _gather(x: Any, start: int, column: int, cos: Any, sin: Any, out: Any) -> None:
    """Rows of one head out of (N, width), turned by their positions."""
    for t in range(out.shape[0]):
        _turn(x[start + t, column : column + out.shape[1]], cos[start + t], sin[start + t], out[t])


@compiled
def _scatter(x: Any, start: int, column: int, cos: Any, sin: Any, out: Any) -> None:
    """The gradient of `_gather`: turned back, into (N, width)."""
    for t in range(x.shape[0]):
        _turn_back(x[t], cos[start + t], sin[start + t], out[start + t, column : column + x.shape[1]])


@compiled
def _copy(x: Any, start: int, column: int, out: Any) -> None:
    for t in range(out.shape[0]):
        _scale(x[start + t, column : column + out.shape[1]], F1, out[t])


@compiled
def _along(x: Any, y: Any, start: int, column: int, width: int, alongs: Any) -> None:
    """Products of the rows of one head of two arrays."""
    for t in range(alongs.shape[0]):
        one, two = x[start + t, column : column + width], y[start + t, column : column + width]
        total = F0
        for j in range(one.shape[0]):
            total += one[j] * two[j]
        alongs[t] = total


@compiled
def _block(top: int, document: Any, opens: Any) -> Any:
    """Rows from `top` on that are computed together: the one behind them, keys of the trunk that they see, their first own key."""
    start, trunk, length = document
    end = min(top + ROWS, trunk if top < trunk else length)
    return end, 0 if top < trunk else trunk, opens[start + top] - start


@compiled
def _sees(row: int, begin: int, behind: int, shared: int, opens: Any, start: int) -> Any:
    """Of keys [begin, behind), which do not cross the trunk's end, those that a row may see, counted from `begin`."""
    low = begin if begin < shared else max(begin, opens[start + row] - start)
    return low - begin, max(low, min(behind, row + 1)) - begin


@compiled
def _soften(
    scores: Any, top: int, end: int, begin: int, behind: int, shared: int, opens: Any, start: int,
    lanes: Any, highs: Any, totals: Any, found: Any,
) -> None:  # fmt: skip
    """Scores become powers, 0 where a row may not look; what was found before is made smaller where the highest score has grown."""
    for row in range(top, end):
        r = row - top
        line = scores[r, : behind - begin]
        first, last = _sees(row, begin, behind, shared, opens, start)
        line[:first] = F0
        line[last:] = F0
        if first < last:
            high = _largest(line[first:last], lanes)
            high = highs[r] if highs[r] > high else high
            shrunk = _power(highs[r] - high)
            totals[r] = totals[r] * shrunk + _powers(line[first:last], high)
            highs[r] = high
            _scale(found[r], shrunk, found[r])


@compiled
def _head(
    query: Any, key: Any, value: Any, document: Any, opens: Any, scale: Any, scores: Any, found: Any, small: Any, said: Any,
    column: int, out: Any, log_totals: Any,
) -> None:  # fmt: skip
    """One head of a document: rows of `query` (tokens, d) into `out` at a column, block by block."""
    start, _, length = document
    highs, totals, lanes = small
    top: Any = np.int64(0)
    while top < length:
        end, shared, own = _block(top, document, opens)
        highs[:], totals[:], found[:] = LOWEST, F0, F0
        begin: Any = np.int64(0) if shared else own
        while begin < end:
            behind = min(begin + KEYS, shared if begin < shared else end)
            block = scores[: end - top, : behind - begin]
            _multiply(query[top:end], PLAIN, key[begin:behind], TURNED, scale * LOG2_E, F0, block, said)
            _soften(scores, top, end, begin, behind, shared, opens, start, lanes, highs, totals, found)
            _multiply(block, PLAIN, value[begin:behind], PLAIN, F1, F1, found[: end - top], said)
            begin = own if behind == shared else behind
        for r in range(end - top):
            log_totals[start + top + r] = highs[r] + np.log2(totals[r])
            _scale(found[r], F1 / totals[r], out[start + top + r, column : column + query.shape[1]])
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
    query, key, value = np.empty((longest, d), np.float32), np.empty((longest, d), np.float32), np.empty((longest, d), np.float32)
    scores, found, said = np.empty((ROWS, KEYS), np.float32), np.empty((ROWS, d), np.float32), np.empty(16, np.int64)
    small = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32), np.empty(LANES, np.float32)
    for work in range(first, last):
        document, head = documents[work // heads], work % heads
        start, _, length = document
        _gather(keys, start, head * d, cos, sin, key[:length])
        _copy(values, start, head * d, value[:length])
        for each in range(head * groups, (head + 1) * groups):
            _gather(asking, start, each * d, cos, sin, query[:length])
            _head(query, key, value, document, opens, scale, scores, found, small, said, each * d, out, log_totals[each])


@compiled
def _soften_back(
    scores: Any, grads: Any, top: int, end: int, begin: int, behind: int, shared: int, opens: Any, start: int,
    log_totals: Any, alongs: Any,
) -> None:  # fmt: skip
    """Scores become probabilities, and the gradients of these those of the scores; 0 where a row may not look."""
    for row in range(top, end):
        line, given = scores[row - top, : behind - begin], grads[row - top, : behind - begin]
        first, last = _sees(row, begin, behind, shared, opens, start)
        line[:first], given[:first] = F0, F0
        line[last:], given[last:] = F0, F0
        _chances(line[first:last], given[first:last], log_totals[start + row], alongs[row])


@compiled
def _head_back(
    query: Any, key: Any, value: Any, given: Any, document: Any, opens: Any, scale: Any, scores: Any, grads: Any, said: Any,
    log_totals: Any, alongs: Any, for_query: Any, for_key: Any, for_value: Any,
) -> None:  # fmt: skip
    """The gradients of one head, added to the last three; keys outermost, since four arrays of them are held and three of rows."""
    start, _, length = document
    for low in range(0, length, KEYS):
        top: Any = np.int64(0)
        while top < length:
            end, shared, own = _block(top, document, opens)
            for begin, behind in ((low, min(low + KEYS, shared)), (max(low, own), min(low + KEYS, end))):
                if begin < behind:
                    block, slopes = scores[: end - top, : behind - begin], grads[: end - top, : behind - begin]
                    _multiply(query[top:end], PLAIN, key[begin:behind], TURNED, scale * LOG2_E, F0, block, said)
                    _multiply(given[top:end], PLAIN, value[begin:behind], TURNED, F1, F0, slopes, said)
                    _soften_back(scores, grads, top, end, begin, behind, shared, opens, start, log_totals, alongs)
                    _multiply(slopes, PLAIN, key[begin:behind], PLAIN, scale, F1, for_query[top:end], said)
                    _multiply(slopes, TURNED, query[top:end], PLAIN, scale, F1, for_key[begin:behind], said)
                    _multiply(block, TURNED, given[top:end], PLAIN, F1, F1, for_value[begin:behind], said)
            top = end


@compiled
def attend_back(
    first: int, last: int, asking: Any, keys: Any, values: Any, cos: Any, sin: Any, documents: Any, opens: Any, scale: Any,
    out: Any, log_totals: Any, for_out: Any, for_asking: Any, for_keys: Any, for_values: Any,
) -> None:  # fmt: skip
    """The gradients of `attend`, of the same work: `for_out` is read, the three behind it are written."""
    d, longest = cos.shape[1], documents[:, 2].max()
    heads, groups = keys.shape[1] // d, asking.shape[1] // keys.shape[1]
    query, key, value = np.empty((longest, d), np.float32), np.empty((longest, d), np.float32), np.empty((longest, d), np.float32)
    given, for_query = np.empty((longest, d), np.float32), np.empty((longest, d), np.float32)
    for_key, for_value = np.empty((longest, d), np.float32), np.empty((longest, d), np.float32)
    scores, grads = np.empty((ROWS, KEYS), np.float32), np.empty((ROWS, KEYS), np.float32)
    alongs, said = np.empty(longest, np.float32), np.empty(16, np.int64)
    for work in range(first, last):
        document, head = documents[work // heads], work % heads
        start, _, length = document
        _gather(keys, start, head * d, cos, sin, key[:length])
        _copy(values, start, head * d, value[:length])
        for_key[:length], for_value[:length] = F0, F0
        for each in range(head * groups, (head + 1) * groups):
            _gather(asking, start, each * d, cos, sin, query[:length])
            _copy(for_out, start, each * d, given[:length])
            _along(for_out, out, start, each * d, d, alongs[:length])
            for_query[:length] = F0
            _head_back(
                query, key, value, given, document, opens, scale, scores, grads, said, log_totals[each], alongs,
                for_query, for_key, for_value,
            )  # fmt: skip
            _scatter(for_query[:length], start, each * d, cos, sin, for_asking)
        _scatter(for_key[:length], start, head * d, cos, sin, for_keys)
        for_values[start : start + length, head * d : (head + 1) * d] = for_value[:length]


@compiled
def gate(first: int, last: int, gates: Any, ups: Any, out: Any) -> None:
    """SwiGLU (Shazeer 2020) of rows [first, last): gates / (1 + exp(-gates)) ups, all (N, I)."""
    for n in range(first, last):
        for j in range(gates.shape[1]):
            x = gates[n, j]
            out[n, j] = x * ups[n, j] / (F1 + _power(-x * LOG2_E))


@compiled
def gate_back(first: int, last: int, gates: Any, ups: Any, for_out: Any, for_gates: Any, for_ups: Any) -> None:
    """The gradients of `gate`."""
    for n in range(first, last):
        for j in range(gates.shape[1]):
            x = gates[n, j]
            share = F1 / (F1 + _power(-x * LOG2_E))
            for_ups[n, j] = for_out[n, j] * x * share
            for_gates[n, j] = for_out[n, j] * ups[n, j] * share * (F1 + x * (F1 - share))


@compiled
def norm(first: int, last: int, epsilon: Any, x: Any, weight: Any, out: Any, inverses: Any) -> None:
    """RMSNorm (Zhang and Sennrich 2019) of rows [first, last): weight x / sqrt(mean(x^2) + epsilon); (N, W), and 1 / sqrt of each row."""
    for n in range(first, last):
        total = F0
        for j in range(x.shape[1]):
            total += x[n, j] * x[n, j]
        inverse = F1 / np.sqrt(total / np.float32(x.shape[1]) + epsilon)
        inverses[n] = inverse
        for j in range(x.shape[1]):
            out[n, j] = x[n, j] * inverse * weight[j]


@compiled
def norm_back(first: int, last: int, x: Any, weight: Any, inverses: Any, for_out: Any, for_x: Any) -> None:
    """The gradient of `norm` by x."""
    for n in range(first, last):
        along, inverse = F0, inverses[n]
        for j in range(x.shape[1]):
            along += for_out[n, j] * weight[j] * x[n, j]
        along *= inverse * inverse * inverse / np.float32(x.shape[1])
        for j in range(x.shape[1]):
            for_x[n, j] = for_out[n, j] * weight[j] * inverse - x[n, j] * along

"""Products with few columns, as the gradients of an adapter are, in float32 on a CPU.

A library copies the wide side into another order first and then has little to do with it. Here it is read where it lies, while it is
in the processor's caches: the two products by which an adapter's parts are seen, and the two that their gradients are.

N tokens, I inputs, O outputs of a layer, C columns: its rank, rounded up to lines of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.architecture.kernels.compiling import compiled
from model.architecture.kernels.pointwise import F0, F1
from model.architecture.kernels.products import BLOCK, strip
from model.architecture.kernels.tile import COLUMNS

CHUNK = 1024
"""Tokens whose gradients are added up by themselves: so the sum is the same on any number of threads."""


@compiled
def _multiply(left: Any, right: Any, out: Any, scale: Any, kept: bool) -> None:
    """out = scale left right (+ out): (M, K) in any order by (K, C), both last contiguous."""
    for column in range(0, right.shape[1], COLUMNS):
        strip(left, right, column, out, column, scale, kept)


@compiled
def adapt_back(first: int, last: int, scale: Any, x: Any, grad: Any, down: Any, up: Any, for_down: Any, for_up: Any) -> None:
    """Gradients of y = x W' + scale x A' B' by A and B, of chunks [first, last) of tokens.

    Args:
        first: Number of a chunk.
        last: Number behind it.
        scale: Of the update.
        x: (N, I).
        grad: (N, O) of y.
        down: (I, C) the transpose of A.
        up: (O, C) B.
        for_down: (chunks, I, C), written: each chunk's share of the transposed gradient of A.
        for_up: (chunks, O, C), written: of B.
    """
    pulled, seen = np.empty((BLOCK, up.shape[1]), np.float32), np.empty((BLOCK, up.shape[1]), np.float32)
    for chunk in range(first, last):
        for_down[chunk], for_up[chunk] = F0, F0
        behind = min(len(x), (chunk + 1) * CHUNK)
        for start in range(chunk * CHUNK, behind, BLOCK):
            end = min(start + BLOCK, behind)
            given, taken = x[start:end], grad[start:end]
            _multiply(taken, up, pulled, scale, False)
            _multiply(taken.T, _seen(given, down, seen), for_up[chunk], scale, True)
            _multiply(given.T, pulled[: end - start], for_down[chunk], F1, True)


@compiled
def _seen(x: Any, down: Any, out: Any) -> Any:
    _multiply(x, down, out, F1, False)
    return out[: len(x)]

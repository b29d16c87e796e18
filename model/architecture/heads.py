"""Queries, keys and values by document and head, with rotary positions: what a fused attention kernel reads fastest.

1. Projections write a token's heads behind each other, so the rows of one head lie a whole width apart, which is a power of two: every
   product over a head then meets the same few lines of the processor's cache. `by_document` puts the tokens of a head behind each
   other, one document at a time. The kernel needs an eighth less time (benchmarks/LOG.md).
2. Rotary positions turn on the way, so they cost one pass over memory: where a pair that turns together lies side by side, the turn is
   one product of complex numbers. `pair_order` gives the order of a projection's rows for that; scores do not depend on the order.
3. `rotated` turns states that lie as the projection wrote them, halves apart, to the bit as transformers does.

B sequences, T tokens, N tokens of all documents, H heads of width d.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

Piece = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values (1, H, tokens, d) of a document."""


@functools.cache
def pair_order(width: int, head_width: int) -> torch.Tensor:
    """(width,) rows of a projection such that i and i + d/2 of every head come side by side."""
    return torch.arange(width).view(-1, 2, head_width // 2).transpose(1, 2).flatten()


def by_document(
    asking: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int]
) -> list[Piece]:
    """Documents of (N, H d) projections.

    Args:
        asking: In `pair_order`, as keys.
        keys: Of as many heads as values.
        values: In their own order.
        cos: (N, d) cosines of each token's position.
        sin: (N, d) sines.
        lengths: Tokens of each document, summing to N.
    """
    half = cos.shape[-1] // 2
    turn = torch.complex(cos[:, :half], sin[:, :half])[:, None]
    found: tuple[torch.Tensor, ...] = _ByDocument.apply(asking, keys, values, turn, tuple(lengths))
    count = len(lengths)
    return list(zip(found[:count], found[count : 2 * count], found[2 * count :], strict=True))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su and others 2021): (B, T, H, d) states turned by (B or 1, T, d) cosines and sines."""
    turned: torch.Tensor = _Rotary.apply(x, cos[:, :, None], sin[:, :, None])
    return turned


class _ByDocument(torch.autograd.Function):
    """Queries of all documents, then keys, then values."""

    @staticmethod
    def forward(
        ctx: Any, asking: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, turn: torch.Tensor, lengths: tuple[int, ...]
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(turn)
        ctx.lengths = lengths
        width = 2 * turn.shape[-1]
        turns = turn.split(lengths)
        pieces = []
        for part, turned in ((asking, True), (keys, True), (values, False)):
            for given, by in zip(part.view(len(part), -1, width).split(lengths), turns, strict=True):
                piece = given.new_empty(given.shape[1], len(given), width)
                _turn(given, by if turned else None, piece.transpose(0, 1))
                pieces.append(piece[None])
        return tuple(pieces)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (turn,) = ctx.saved_tensors
        back = turn.conj_physical().split(ctx.lengths)
        count = len(ctx.lengths)
        found = []
        for start, turned in ((0, True), (count, True), (2 * count, False)):
            parts = grads[start : start + count]
            whole = parts[0].new_empty(sum(ctx.lengths), *parts[0].shape[1::2])
            for part, by, out in zip(parts, back, whole.split(ctx.lengths), strict=True):
                grad = part[0].transpose(0, 1)
                _turn(grad if grad.stride(-1) == 1 else grad.contiguous(), by if turned else None, out)
            found.append(whole.flatten(1))
        return *found, None, None


def _turn(given: torch.Tensor, by: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write (tokens, H, d) into `out`, turned if asked."""
    if by is None:
        out.copy_(given)
    else:
        torch.mul(_pairs(given), by, out=_pairs(out))


def _pairs(x: torch.Tensor) -> torch.Tensor:
    """(..., d) as (..., d/2) complex numbers."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class _Rotary(torch.autograd.Function):
    """x cos + (-x2, x1) sin, of x = (x1, x2)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        turned = torch.empty_like(x)
        (x1, x2), (c1, c2), (s1, s2), (y1, y2) = (part.chunk(2, dim=-1) for part in (x, cos, sin, turned))
        # Not addcmul_, which rounds once where transformers rounds twice: keys are the same bits whichever way they were made.
        torch.mul(x1, c1, out=y1).sub_(x2 * s1)
        torch.mul(x2, c2, out=y2).add_(x1 * s2)
        return turned

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        back = torch.empty_like(grad)
        (g1, g2), (c1, c2), (s1, s2), (x1, x2) = (part.chunk(2, dim=-1) for part in (grad, cos, sin, back))
        torch.mul(g1, c1, out=x1).add_(g2 * s2)
        torch.mul(g2, c2, out=x2).sub_(g1 * s1)
        return back, None, None

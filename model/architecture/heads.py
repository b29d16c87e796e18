"""Attention's functions on tensors: `attended` over documents, by the kernels of a CPU, and `rotated` for those who attend otherwise.

B sequences, T tokens, N tokens of all documents, H heads of queries and G of keys and values, of width d.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from model.architecture.kernels import attention
from model.architecture.kernels.compiling import share
from model.batch import Document
from model.errors import InternalError


def attended(
    asking: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    documents: Sequence[Document],
    scale: float,
) -> torch.Tensor:
    """(N, H d) of every document by itself, every branch with its trunk.

    Args:
        asking: (N, H d) queries as their projection wrote them, float32 on the CPU, like all others.
        keys: (N, G d).
        values: (N, G d).
        cos: (N, d) cosines of each token's position, both halves equal.
        sin: (N, d) sines.
        documents: Behind each other, covering N.
        scale: Of the scores.

    Raises:
        InternalError: The documents cover more or less than that: the kernel would read what is not there.
    """
    covered = sum(each.end - each.start for each in documents)
    if not covered == documents[-1].end == len(asking):
        raise InternalError(
            f"a batch of {len(asking):,} tokens came with documents of {covered:,}, up to {documents[-1].end:,}",
            "a layout of another batch; this is a fault of biovlm, please report it",
        )
    found: torch.Tensor = _Attended.apply(asking, keys, values, cos, sin, tuple(documents), scale)
    return found


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su and others 2021): (B, T, H, d) states turned by (B or 1, T, d) cosines and sines, to transformers' bit."""
    turned: torch.Tensor = _Rotary.apply(x, cos[:, :, None], sin[:, :, None])
    return turned


@functools.lru_cache(maxsize=4)
def _shape(documents: tuple[Document, ...]) -> tuple[Any, Any]:
    """`documents` and `opens` of the kernels."""
    table = torch.tensor([(each.start, each.trunk, each.end - each.start) for each in documents])
    opens = torch.empty(documents[-1].end, dtype=torch.int64)
    for each in documents:
        place = each.start + each.trunk
        opens[each.start : place] = each.start
        for size in each.branches:
            opens[place : place + size] = place
            place += size
    return table.numpy(), opens.numpy()


class _Attended(torch.autograd.Function):
    """The work is divided by documents and heads of keys, so that results do not depend on how many threads do it."""

    @staticmethod
    def forward(
        ctx: Any,
        asking: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        documents: tuple[Document, ...],
        scale: float,
    ) -> torch.Tensor:
        given = [each.contiguous() for each in (asking, keys, values, cos, sin)]
        heads = asking.shape[1] // cos.shape[1]
        found, log_totals = torch.empty_like(given[0]), asking.new_empty(heads, len(asking))
        ctx.save_for_backward(*given, found, log_totals)
        ctx.documents, ctx.scale = documents, scale
        arrays = [each.detach().numpy() for each in given] + [*_shape(documents), attention.F32(scale)]
        results = [found.numpy(), log_totals.numpy()]
        share(_works(documents, keys, cos), lambda first, last: attention.attend(first, last, *arrays, *results))
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *given, found, log_totals = ctx.saved_tensors
        back = [torch.empty_like(each) for each in given[:3]]
        arrays = [each.numpy() for each in given] + [*_shape(ctx.documents), attention.F32(ctx.scale)]
        results = [each.numpy() for each in (found, log_totals, grad.contiguous(), *back)]
        works = _works(ctx.documents, given[1], given[3])
        share(works, lambda first, last: attention.attend_back(first, last, *arrays, *results))
        return *back, None, None, None, None


def _works(documents: Sequence[Document], keys: torch.Tensor, cos: torch.Tensor) -> int:
    return len(documents) * keys.shape[1] // cos.shape[1]


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

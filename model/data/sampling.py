"""The batch plan: which examples stand in which optimizer step, on which worker, in which forward pass.

The journey of an epoch, a pure function of its arguments:
1. Weights: an example of weight 2 appears twice; of those of weight 0.5 every epoch takes another half, by a seeded order.
2. Order: shuffled by (seed, epoch).
3. Steps: the order is cut whenever `batch_tokens` are full. A step is thus a plain random sample, and neither the number of
   workers nor the size of a forward pass can change which examples it holds.
4. Forward passes: inside a step, examples are sorted by length and cut so that padding stays small (`MAX_PADDING`) and no pass is
   above `micro_batch_tokens`; the passes are dealt to the workers evenly, in number and in tokens.

To resume at (epoch, step), make the plan of that epoch again and go on at that index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_PADDING = 0.08
"""A forward pass is cut before its padding exceeds this share of its tokens..."""
FREE_PADDING = 128
"""...and this number of tokens: about what starting another pass costs."""
_WEIGHTS, _ORDER = 1, 2


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    ranks: tuple[tuple[tuple[int, ...], ...], ...]
    """For each worker its forward passes, for each pass the indices of its examples (at least one).

    All workers have the same number of passes, unless every pass already holds a single example: then some have one pass less
    than others, and none at all if the step has fewer examples than workers.
    """

    @property
    def examples(self) -> tuple[int, ...]:
        """Indices of all examples of the step, ascending; an index may appear twice."""
        return tuple(sorted(index for rank in self.ranks for micro in rank for index in micro))


def plan(
    lengths: Sequence[int],
    batch_tokens: int,
    micro_batch_tokens: int,
    world_size: int,
    seed: int,
    epoch: int,
    weights: Sequence[float] | None = None,
) -> list[Step]:
    """The steps of one epoch.

    Args:
        lengths: Tokens of each example, without padding.
        batch_tokens: Most tokens of a step over all workers, padding excluded; a longer example gets a step of its own.
        micro_batch_tokens: Most tokens of a forward pass, padding included; a longer example gets a pass of its own.
        world_size: Number of workers, from 1.
        seed: Of the recipe.
        epoch: From 0.
        weights: How often an epoch shows each example; empty for once.
    """
    sizes = np.asarray(lengths, np.int64)
    shown = np.arange(len(sizes)) if weights is None else _shown(np.asarray(weights, np.float64), seed, epoch)
    order = np.random.default_rng([_ORDER, seed, epoch]).permutation(shown)
    return [_step(indices, sizes, micro_batch_tokens, world_size) for indices in _cut(order, sizes, batch_tokens)]


def _shown(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Indices with repetition: whole part of the weight always, the fraction by turns."""
    whole = np.floor(weights).astype(np.int64)
    shown = [np.repeat(np.arange(len(weights)), whole)]
    fractions = weights - whole
    for fraction in np.unique(fractions[fractions > 0]):
        members = np.flatnonzero(fractions == fraction)
        # The same order in all epochs, and a window that moves on: over many epochs everyone is shown equally often.
        turn = np.random.default_rng([_WEIGHTS, seed]).permutation(members)
        start, end = round(epoch * fraction * len(turn)), round((epoch + 1) * fraction * len(turn))
        shown.append(turn[np.arange(start, end) % len(turn)])
    return np.concatenate(shown)


def _cut(order: np.ndarray, sizes: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """`order` in pieces of at most `batch_tokens` tokens, at least one example each."""
    ends = np.cumsum(sizes[order])
    pieces, start, used = [], 0, 0
    while start < len(order):
        stop = max(int(np.searchsorted(ends, used + batch_tokens, side="right")), start + 1)
        pieces.append(order[start:stop])
        start, used = stop, int(ends[stop - 1])
    return pieces


def _step(indices: np.ndarray, sizes: np.ndarray, micro_batch_tokens: int, world_size: int) -> Step:
    """Forward passes of the examples of one step, dealt to the workers."""
    # Ties by index, so that the result does not depend on the order of arrival.
    ordered = sorted(indices.tolist(), key=lambda index: (-int(sizes[index]), index))
    micros = _split(_group(ordered, sizes, micro_batch_tokens), sizes, world_size)
    return Step(_deal(micros, [int(sizes[micro[0]]) * len(micro) for micro in micros], world_size))


def _deal(micros: Sequence[Sequence[int]], costs: Sequence[int], world_size: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Rounds of one pass for each worker, the expensive passes first, each to the worker with the least to do so far."""
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    waiting = sorted(range(len(micros)), key=lambda number: (-costs[number], number))
    for start in range(0, len(waiting), world_size):
        idle = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, number in zip(idle, waiting[start : start + world_size], strict=False):
            ranks[rank].append(tuple(micros[number]))
            loads[rank] += costs[number]
    return tuple(tuple(rank) for rank in ranks)


def _group(ordered: Sequence[int], sizes: np.ndarray, micro_batch_tokens: int) -> list[list[int]]:
    """Cut indices in order of falling length into forward passes within the limits."""
    micros: list[list[int]] = []
    longest = real = 0
    for index in ordered:
        size = int(sizes[index])
        padded = longest * (len(micros[-1]) + 1) if micros else 0
        if not micros or padded > micro_batch_tokens or padded - real - size > max(MAX_PADDING * padded, FREE_PADDING):
            micros.append([])
            longest, real = size, 0
        micros[-1].append(index)
        real += size
    return micros


def _split(micros: list[list[int]], sizes: np.ndarray, world_size: int) -> list[list[int]]:
    """Halve the most expensive passes until every worker gets the same number."""
    while len(micros) % world_size:
        largest = max((m for m in micros if len(m) > 1), key=lambda m: (int(sizes[m[0]]) * len(m), -m[0]), default=None)
        if largest is None:
            break
        half = len(largest) // 2
        micros = [m for m in micros if m is not largest] + [largest[:half], largest[half:]]
    return micros

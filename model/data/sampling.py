"""The batch plan: which examples stand in which optimizer step, on which worker, in which forward pass.

The journey of an epoch, a pure function of its arguments:
1. Weights: an example of weight 2 appears twice; of those of weight 0.5 every epoch takes another half, by a seeded order.
2. Without packing, the order is shuffled by (seed, epoch) and cut whenever `batch_tokens` are full. A step is a plain random sample.
   Inside a step, examples are sorted by length and cut into padded forward passes, so that padding stays small (`MAX_PADDING`) and no
   pass is above `micro_batch_tokens`.
3. With packing, all examples of the epoch become rows of at most `micro_batch_tokens` (see packing), the rows are shuffled by (seed,
   epoch), and a step is as many of them as `batch_tokens` hold. A row is a forward pass.
4. The passes of a step are dealt to the workers evenly, in number, tokens and images. If there are fewer passes than workers, the
   largest are divided between examples, in `shared_image` between images.

Neither the number of workers nor the division into passes can change which examples a step holds. Steps are dealt when they are asked
for, and what an epoch is made of lies in a file that is mapped into memory, so a run holds no list of its examples; to go on at step
n is to ask for step n.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from model.config import Packing
from model.data import columns
from model.data.packing import Ints, Lists, Metadata, documents, image_budget, pack

MAX_PADDING = 0.08
"""A forward pass is cut before its padding exceeds this share of its tokens..."""
FREE_PADDING = 128
"""...and this number of tokens: about what starting another pass costs."""
IMAGE_COST = 1.0
"""What an image counts when passes are dealt out, in units of the tokens that it stands for."""
_WEIGHTS, _ORDER, _ROWS = 1, 2, 3

Pass = tuple[int, ...]
"""Indices of the examples of one forward pass (at least one), in their order in it."""
Step = tuple[tuple[Pass, ...], ...]
"""For each worker its forward passes.

All workers have the same number of passes, unless every pass already holds a single example (or image): then some have one pass less
than others, and none at all if the step has fewer examples than workers.
"""


@dataclass(frozen=True)
class Rules:
    """How examples become steps."""

    batch_tokens: int
    """Most tokens of a step over all workers, padding excluded; a longer example gets a step of its own."""
    micro_batch_tokens: int
    """Most tokens of a forward pass. Without packing padding is included, and a longer example gets a pass of its own."""
    packing: Packing = Packing.NONE
    pack_images: int | None = None
    """Most images of a packed row; None takes `packing.image_budget`."""


@dataclass(frozen=True)
class _Epoch:
    """Passes (with packing) or plain steps (without) of an epoch, in order."""

    lists: Lists
    each: int
    """How many of `lists` make a step."""
    steps: int


class Plan(Sequence[Step]):
    """All steps of a run.

    Args:
        metadata: Of all examples.
        rules: Of the recipe.
        world_size: Number of workers, from 1.
        seed: Of the recipe.
        epochs: How many; of a last part of an epoch, as many steps as its share.
        weights: How often an epoch shows each example; empty for once.
    """

    def __init__(
        self,
        metadata: Metadata,
        rules: Rules,
        world_size: int,
        seed: int,
        epochs: float = 1.0,
        weights: Sequence[float] | Ints | None = None,
    ) -> None:
        self._metadata, self._rules, self._world_size = metadata, rules, world_size
        shown = np.ones(len(metadata.tokens)) if weights is None else np.asarray(weights, np.float64)
        made = []
        for number in range(math.ceil(epochs)):
            lists, each = _epoch(metadata, shown, rules, seed, number)
            whole = -(-len(lists) // each)
            made.append(_Epoch(_mapped(lists), each, math.ceil(whole * min(1.0, epochs - number))))
        self._epochs = made
        self._ends = list(itertools.accumulate(epoch.steps for epoch in made))
        self._recent: dict[int, Step] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if number not in self._recent:  # a step is asked for several times while it runs
            self._recent = {**dict(list(self._recent.items())[-1:]), number: self._deal(number)}
        return self._recent[number]

    def _deal(self, number: int) -> Step:
        which = bisect.bisect_right(self._ends, number)
        epoch = self._epochs[which]
        first = (number - (self._ends[which - 1] if which else 0)) * epoch.each
        lists = [epoch.lists[row] for row in range(first, min(first + epoch.each, len(epoch.lists)))]
        if self._rules.packing is Packing.NONE:
            return _step(lists[0], self._metadata.tokens, self._rules.micro_batch_tokens, self._world_size)
        return _packed_step(lists, self._metadata, self._rules.packing, self._world_size)


def packed_tokens(indices: Pass | Ints, metadata: Metadata, packing: Packing) -> int:
    """Tokens of a packed row: the trunk of neighbours that share an image counts once."""
    row = np.asarray(indices)
    total = int(metadata.tokens[row].sum())
    if packing is Packing.SHARED_IMAGE:
        group = metadata.group[row]
        total -= int(metadata.trunk[row][1:][group[1:] == group[:-1]].sum())
    return total


def divided(indices: Pass | Ints, metadata: Metadata, packing: Packing) -> list[Pass]:
    """The documents of a packed row: its examples, or in `shared_image` neighbours that share an image together."""
    row = np.asarray(indices)
    if packing is not Packing.SHARED_IMAGE:
        return [(int(index),) for index in row]
    group = metadata.group[row]
    return [tuple(part.tolist()) for part in np.split(row, np.flatnonzero(group[1:] != group[:-1]) + 1)]


def _epoch(metadata: Metadata, weights: np.ndarray, rules: Rules, seed: int, epoch: int) -> tuple[Lists, int]:
    """What the epoch is made of, and how many of it make a step."""
    shown = _shown(weights, seed, epoch)
    if rules.packing is Packing.NONE:
        order = np.random.default_rng([_ORDER, seed, epoch]).permutation(shown)
        return Lists(order, _cut(order, metadata.tokens, rules.batch_tokens)), 1
    generator = np.random.default_rng([_ROWS, seed, epoch])
    found = documents(shown, metadata, rules.packing, rules.micro_batch_tokens, generator)
    images = image_budget(found, rules.micro_batch_tokens) if rules.pack_images is None else rules.pack_images
    rows = pack(found, rules.micro_batch_tokens, images, generator)
    return rows.joined(found.members), max(1, rules.batch_tokens // rules.micro_batch_tokens)


def _mapped(lists: Lists) -> Lists:
    return Lists(columns.mapped(lists.values.astype(np.int32)), columns.mapped(lists.offsets))


def _packed_step(rows: Sequence[Ints], metadata: Metadata, packing: Packing, world_size: int) -> Step:
    """Rows dealt to the workers; divided between documents where there are too few."""
    passes: list[list[Pass]] = [divided(row, metadata, packing) for row in rows]
    image = int(metadata.trunk.max(initial=0))

    def cost(parts: Sequence[Pass]) -> int:
        row = [index for part in parts for index in part]
        return packed_tokens(tuple(row), metadata, packing) + int(IMAGE_COST * image * sum(metadata.images[p[0]] for p in parts))

    while len(passes) % world_size:
        largest = max((parts for parts in passes if len(parts) > 1), key=lambda parts: (cost(parts), -parts[0][0]), default=None)
        if largest is None:
            break
        half = len(largest) // 2
        passes = [parts for parts in passes if parts is not largest] + [largest[:half], largest[half:]]
    flat = [[index for part in parts for index in part] for parts in passes]
    return _deal(flat, [cost(parts) for parts in passes], world_size)


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


def _cut(order: np.ndarray, sizes: np.ndarray, batch_tokens: int) -> Ints:
    """Where pieces of at most `batch_tokens` tokens, at least one example each, begin and end in `order`."""
    ends = np.cumsum(sizes[order])
    offsets, used = [0], 0
    while offsets[-1] < len(order):
        stop = max(int(np.searchsorted(ends, used + batch_tokens, side="right")), offsets[-1] + 1)
        offsets.append(stop)
        used = int(ends[stop - 1])
    return np.array(offsets, np.int64)


def _step(indices: np.ndarray, sizes: np.ndarray, micro_batch_tokens: int, world_size: int) -> Step:
    """Forward passes of the examples of one step, dealt to the workers."""
    # Ties by index, so that the result does not depend on the order of arrival.
    ordered = sorted(indices.tolist(), key=lambda index: (-int(sizes[index]), index))
    micros = _split(_group(ordered, sizes, micro_batch_tokens), sizes, world_size)
    return _deal(micros, [int(sizes[micro[0]]) * len(micro) for micro in micros], world_size)


def _deal(micros: Sequence[Sequence[int]], costs: Sequence[int], world_size: int) -> Step:
    """Rounds of one pass for each worker, the expensive passes first, each to the worker with the least to do so far."""
    ranks: list[list[Pass]] = [[] for _ in range(world_size)]
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

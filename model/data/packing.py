"""Packing as a plan from metadata alone: which documents share a row. No pixel is decoded, no token is read.

1. `documents` makes the units that are packed. In `rows` each shown example is one. In `shared_image` the examples of one image (and
   one beginning) are: the *trunk* (image and what stands before it) once, then a *branch* for each example; a group longer than a row
   becomes several documents.
2. `image_budget` is the number of images a row may hold: at most a tenth more than all rows have on average, so that every row costs
   the vision tower about the same.
3. `pack` fills rows best-fit-decreasing under both budgets: the longest documents first, each into the fullest row that still has
   room. Equal documents are interchangeable, so the work is done on *classes* of equal (tokens, images) and on groups of rows
   that are filled alike; it depends on the number of classes, and only the last step, drawing which document stands for which
   place, on the number of documents.

Everything is a function of its arguments; the order among equals is drawn from a generator that the caller seeds.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.config import Packing
from model.errors import ConfigError

UNEVEN = 1.1
"""Most images of a row over the mean. Less would leave rows without room for images and with room for tokens."""
Ints = np.ndarray
"""One-dimensional array of integers."""


@dataclass(frozen=True)
class Lists:
    """A list of lists of integers as two arrays."""

    values: Ints
    """All lists behind each other."""
    offsets: Ints
    """(N + 1,): list n is `values[offsets[n]:offsets[n + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ints:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, order: Ints) -> Lists:
        """The lists of these numbers, in this order."""
        lengths = np.diff(self.offsets)[order]
        offsets = _offsets(lengths)
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + np.repeat(self.offsets[:-1][order], lengths)
        return Lists(self.values[places], offsets)

    def joined(self, inner: Lists) -> Lists:
        """Each value replaced by the list of that number in `inner`."""
        flat = inner.take(self.values)
        return Lists(flat.values, flat.offsets[self.offsets])


@dataclass(frozen=True)
class Documents:
    """What is packed. D documents."""

    members: Lists
    """Examples of each document."""
    tokens: Ints
    """(D,) length of each, the trunk counted once."""
    images: Ints
    """(D,) images of each."""


@dataclass(frozen=True)
class Metadata:
    """What planning needs to know of E examples."""

    tokens: Ints
    """(E,) length."""
    images: Ints
    """(E,) number of images."""
    trunk: Ints
    """(E,) length up to and with the last image placeholder; 0 without images."""
    group: Ints
    """(E,) equal for examples with the same images and the same trunk; of its own for an example without images."""


def documents(shown: Ints, metadata: Metadata, packing: Packing, row_tokens: int, generator: np.random.Generator) -> Documents:
    """The units of an epoch.

    Args:
        shown: Examples of the epoch; one may stand in it several times.
        metadata: Of all examples.
        packing: ROWS or SHARED_IMAGE.
        row_tokens: Most tokens of a row, so of a document; one example alone may not exceed it (see `check_rows`).
        generator: Draws the order of branches.
    """
    if packing is Packing.ROWS:
        whole = Lists(shown, np.arange(len(shown) + 1))
        return Documents(whole, metadata.tokens[shown], metadata.images[shown])
    shuffled = generator.permutation(shown)
    ordered = shuffled[np.argsort(metadata.group[shuffled], kind="stable")]
    trunk, branch = metadata.trunk[ordered], (metadata.tokens - metadata.trunk)[ordered]
    starts = _starts(metadata.group[ordered], trunk, branch, row_tokens)
    offsets = np.append(starts, len(ordered)).astype(np.int64)
    tokens = trunk[starts] + (np.add.reduceat(branch, starts) if len(starts) else branch)
    return Documents(Lists(ordered, offsets), tokens, metadata.images[ordered][starts])


def image_budget(documents: Documents, row_tokens: int) -> int:
    """Images that a row may hold: `UNEVEN` times the mean over the fewest possible rows; never fewer than one document needs."""
    tokens, images = int(documents.tokens.sum()), int(documents.images.sum())
    if not images:
        return 0
    mean = images / -(-tokens // row_tokens)
    return max(math.ceil(mean), math.floor(UNEVEN * mean), int(documents.images.max()))


def check_rows(metadata: Metadata, names: Sequence[str], row_tokens: int, row_images: int | None) -> None:
    """ConfigError, naming the longest, if one example alone is more than a row may hold."""
    for what, sizes, limit, field in (
        ("tokens", metadata.tokens, row_tokens, "stages.*.micro_batch_tokens"),
        ("images", metadata.images, row_images, "stages.*.pack_images"),
    ):
        if limit is None or not len(sizes) or int(sizes.max()) <= limit:
            continue
        longest = int(sizes.argmax())
        raise ConfigError(
            f"record {names[longest]!r} has {int(sizes[longest]):,} {what}, a packed row holds {limit:,}; "
            f"{int((sizes > limit).sum()):,} of {len(sizes):,} records are larger",
            f"raise {field}; a record is never cut to fit",
        )


def pack(documents: Documents, row_tokens: int, row_images: int, generator: np.random.Generator) -> Lists:
    """Rows of documents, best-fit-decreasing.

    Args:
        documents: None longer than `row_tokens` or with more images than `row_images`.
        row_tokens: Most tokens of a row.
        row_images: Most images of a row.
        generator: Draws which of equal documents goes where, and the order of the rows.

    Returns:
        Numbers of documents, row by row, in random order.
    """
    order = generator.permutation(len(documents.tokens))
    sizes = np.stack([documents.tokens[order], documents.images[order]], axis=1)
    classes, of_class = np.unique(sizes, axis=0, return_inverse=True)
    counts = np.bincount(of_class, minlength=len(classes))
    waiting = np.split(order[np.argsort(of_class, kind="stable")], np.cumsum(counts)[:-1]) if len(classes) else []
    open_rows = _Rows(row_tokens, row_images)
    for number in range(len(classes) - 1, -1, -1):  # np.unique sorts by tokens, then images
        open_rows.place(number, int(classes[number, 0]), int(classes[number, 1]), int(counts[number]))
    return _draw(open_rows, waiting, generator)


@dataclass
class _Alike:
    """Rows that are filled alike."""

    tokens: int
    """Room left."""
    images: int
    count: int
    holds: tuple[tuple[int, int], ...] = ()
    """(class, how many of it), for each of these rows."""

    def with_more(self, number: int, tokens: int, images: int, each: int, count: int) -> _Alike:
        left = (self.tokens - each * tokens, self.images - each * images)
        return _Alike(*left, count, (*self.holds, (number, each)))


class _Rows:
    """Open rows, sorted by the tokens that they have room for."""

    def __init__(self, row_tokens: int, row_images: int) -> None:
        self._empty = _Alike(row_tokens, row_images, 0)
        self._room: list[int] = []
        self.alike: list[_Alike] = []

    def place(self, number: int, tokens: int, images: int, count: int) -> None:
        """Put `count` documents of one class where they fit best, the rest into new rows."""
        start = bisect.bisect_left(self._room, tokens)
        changed: list[_Alike] = []
        while count and start < len(self.alike):
            rows = self.alike[start]
            each = _fitting(rows, tokens, images)
            if not each:
                start += 1
                continue
            del self._room[start], self.alike[start]
            count, pieces = _fill(rows, number, tokens, images, each, count)
            changed += pieces
        if count:
            # As many empty rows as it takes; those that stay empty are dropped.
            rows = _Alike(self._empty.tokens, self._empty.images, count)
            _, pieces = _fill(rows, number, tokens, images, _fitting(rows, tokens, images), count)
            changed += [piece for piece in pieces if piece.holds]
        for rows in changed:
            place = bisect.bisect_left(self._room, rows.tokens)
            self._room.insert(place, rows.tokens)
            self.alike.insert(place, rows)


def _fitting(rows: _Alike, tokens: int, images: int) -> int:
    """How many documents of this size one of these rows has room for."""
    return min(rows.tokens // tokens, rows.images // images if images else rows.tokens)


def _fill(rows: _Alike, number: int, tokens: int, images: int, each: int, count: int) -> tuple[int, list[_Alike]]:
    """Put up to `count` documents into rows that take `each`: a row that got one is the fullest, and gets the next as well.

    Returns:
        Documents left over, and the rows, those that are filled alike together.
    """
    whole = min(rows.count, count // each)
    left = count - whole * each
    pieces = [rows.with_more(number, tokens, images, each, whole)] if whole else []
    untouched = rows.count - whole
    if left and untouched:
        pieces.append(rows.with_more(number, tokens, images, left, 1))
        left, untouched = 0, untouched - 1
    if untouched:
        pieces.append(_Alike(rows.tokens, rows.images, untouched, rows.holds))
    return left, pieces


def _draw(rows: _Rows, waiting: list[Ints], generator: np.random.Generator) -> Lists:
    """Documents for the places that the rows have for their classes."""
    used = [0] * len(waiting)
    values, lengths = [], []
    for alike in rows.alike:
        columns = []
        for number, each in alike.holds:
            take = alike.count * each
            columns.append(waiting[number][used[number] : used[number] + take].reshape(alike.count, each))
            used[number] += take
        block = np.concatenate(columns, axis=1)
        values.append(block.reshape(-1))
        lengths.append(np.full(alike.count, block.shape[1]))
    if not values:
        return Lists(np.zeros(0, np.int64), np.zeros(1, np.int64))
    found = Lists(np.concatenate(values), _offsets(np.concatenate(lengths)))
    return found.take(generator.permutation(len(found)))


def _starts(group: Ints, trunk: Ints, branch: Ints, row_tokens: int) -> Ints:
    """Where documents begin in examples sorted by group: at each new group, and wherever the row would be exceeded."""
    if not len(group):
        return np.zeros(0, np.int64)
    first = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    sums = np.append(0, np.cumsum(branch))
    ends = np.append(first[1:], len(group))
    long = trunk[first] + sums[ends] - sums[first] > row_tokens
    more = []
    for begin, end in zip(first[long].tolist(), ends[long].tolist(), strict=True):
        room = row_tokens - int(trunk[begin])
        while begin < end:
            begin = max(int(np.searchsorted(sums, sums[begin] + room, side="right")) - 1, begin + 1)
            more.append(min(begin, end))
    return np.union1d(first, np.array(more, np.int64)[np.array(more) < len(group)]) if more else first


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

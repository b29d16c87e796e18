"""How what was asked for spreads from data sets to versions: pure functions over numbers and bits.

A set of things is an `int` whose bits are the things (`Bits`), so that joining two is one operation for ten thousand of them.

1. `in_parts` says which things stand in which part (data set, split, kind of record).
2. `groups` puts together the artifacts that used the same: a stage's splits and kinds, without what was left out. There are few such
   uses, and many artifacts of each; so what is handed on are bits of uses, and the things are counted once for each history.
3. `downstream` hands on to all that was made from an artifact: the next stage, an export, a base model made from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

Bits = int


class Row(NamedTuple):
    """Things with one fate: in the numbers `first`..`last` of a series, of one kind."""

    series: int
    first: int
    last: int
    kind: int


class Split(NamedTuple):
    """A split of a version of a data set, and its number in its series."""

    set_id: int
    split: str
    series: int
    number: int


class Use(NamedTuple):
    """What an artifact read: `kinds` (a mask) of a split, without those of an exclusion list (0: all)."""

    set_id: int
    split: str
    kinds: int
    exclusion: int


class Part(NamedTuple):
    """Records of one kind in one split of one version of a data set."""

    set_id: int
    split: str
    kind: int


def in_parts(rows: Mapping[Row, Bits], splits: Iterable[Split]) -> dict[Part, Bits]:
    """Part -> the things in it."""
    by_series: defaultdict[int, list[Split]] = defaultdict(list)
    for split in splits:
        by_series[split.series].append(split)
    found: defaultdict[Part, Bits] = defaultdict(int)
    for row, things in rows.items():
        for split in by_series[row.series]:
            if row.first <= split.number <= row.last:
                found[Part(split.set_id, split.split, row.kind)] |= things
    return dict(found)


def used(use: Use, parts: Mapping[tuple[int, str], list[tuple[int, Bits]]], excluded: Mapping[int, Bits]) -> Bits:
    """The things that a use read.

    Args:
        use: The use.
        parts: (set, split) -> kinds and the things of that kind there.
        excluded: Exclusion list -> things on it.
    """
    things = 0
    for kind, those in parts.get((use.set_id, use.split), ()):
        things |= those if use.kinds >> kind & 1 else 0
    return things & ~excluded.get(use.exclusion, 0)


def groups(
    uses: Iterable[tuple[int, Use]], parts: Mapping[Part, Bits], excluded: Mapping[int, Bits]
) -> tuple[dict[int, Bits], list[Bits]]:
    """Artifact -> bits of the different uses that read something asked for; and for each of those uses the things."""
    by_split: defaultdict[tuple[int, str], list[tuple[int, Bits]]] = defaultdict(list)
    for part, those in parts.items():
        by_split[part.set_id, part.split].append((part.kind, those))
    number: dict[Use, int | None] = {}
    things: list[Bits] = []
    own: defaultdict[int, Bits] = defaultdict(int)
    for artifact, use in uses:
        if use not in number:
            read = used(use, by_split, excluded)
            number[use] = len(things) if read else None
            things += [read] if read else []
        place = number[use]
        if place is not None:
            own[artifact] |= 1 << place
    return dict(own), things


def downstream(own: Mapping[int, Bits], edges: Iterable[tuple[int, int]]) -> dict[int, Bits]:
    """Artifact -> the bits that it, or anything it was made from, has; only those with some.

    Args:
        own: Artifact -> bits it has itself.
        edges: (parent, child). A circle, which no honest store holds, ends as soon as nothing new is handed on.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    for parent, child in edges:
        children[parent].append(child)
    found = dict(own)
    todo = list(own)
    while todo:
        parent = todo.pop()
        for child in children.get(parent, ()):
            before = found.get(child, 0)
            joined = before | found[parent]
            if joined != before:
                found[child] = joined
                todo.append(child)
    return found


def places(bits: Bits) -> Iterator[int]:
    """The numbers of the bits that are set, from the lowest."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest

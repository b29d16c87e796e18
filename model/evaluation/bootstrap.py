"""Intervals that know that questions about one image are not independent.

1. `Draws` draws the groups (image, study or patient) with replacement, as many as there are, once for all figures of a benchmark.
2. `Draws.interval` sums a figure's items by group and computes its mean in each draw. A slice keeps only its own items; a draw that
   holds none of them says nothing and is left out.
3. The interval is cut from the draws by percentiles (Efron 1979; resampling whole clusters: Field and Welsh 2007).

A paired comparison is the same on the differences item by item, so that what is hard for both sides cancels out. One seed always
draws the same groups, and a higher score of any item never lowers an end of the interval.

What a percentile bootstrap cannot see: if every group has the same score, the interval has no width, however few groups there are.
Read it together with the counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean over items with its interval."""

    value: float
    low: float | None
    """Lower end; None with fewer than two groups, where nothing can be resampled."""
    high: float | None
    items: int
    groups: int


class Draws:
    """The groups of a benchmark, drawn with replacement.

    Args:
        groups: The group of every item; order and repetitions do not matter.
        samples: Number of draws.
        confidence: Share of the draws inside an interval, e.g. 0.95.
        seed: Seed of the draws.
    """

    def __init__(self, groups: Iterable[str], samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        names = sorted(set(groups))
        if not names:
            raise ValueError("there is no group to draw")
        self._place = {name: place for place, name in enumerate(names)}
        self._tail = (1 - confidence) / 2
        chances = np.full(len(names), 1 / len(names))
        # (samples, G): how often each draw holds each group. float32 halves the memory and is exact for counts.
        self._times = np.random.default_rng(seed).multinomial(len(names), chances, size=samples).astype(np.float32)

    def interval(self, values: Sequence[float], groups: Sequence[str]) -> Interval:
        """Mean of `values`, one number an item, with its percentile interval; see `intervals`."""
        return self.intervals([[value] for value in values], groups)[0]

    def intervals(self, rows: Sequence[Sequence[float]], groups: Sequence[str]) -> list[Interval]:
        """Means of several scores of the same items, each with its percentile interval.

        Args:
            rows: One row of K finite numbers an item.
            groups: The group of each item, among those given at the start.

        Returns:
            K intervals.

        Raises:
            ValueError: No items, lengths that differ, an unknown group, or a number that is not finite.
        """
        if len(rows) != len(groups) or not rows:
            raise ValueError(f"{len(rows)} items and {len(groups)} groups: give one group an item, and at least one item")
        numbers = np.asarray(rows, np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} values are not finite")
        if not self._place.keys() >= set(groups):
            raise ValueError(f"{len(set(groups) - self._place.keys())} groups of the items were not drawn")
        places, index = np.unique([self._place[group] for group in groups], return_inverse=True)
        sizes = np.bincount(index).astype(np.float64)
        sums = np.zeros((len(places), numbers.shape[1]))
        np.add.at(sums, index, numbers)
        values = sums.sum(axis=0) / len(numbers)
        ends: list[tuple[float | None, float | None]] = [(None, None)] * len(values)
        if len(places) > 1:
            times = self._times[:, places].astype(np.float64)
            drawn = times @ sizes
            means = (times @ sums)[drawn > 0] / drawn[drawn > 0, None]
            low, high = np.quantile(means, [self._tail, 1 - self._tail], axis=0)
            ends = list(zip(low.tolist(), high.tolist(), strict=True))
        return [Interval(v, low, high, len(numbers), len(places)) for v, (low, high) in zip(values.tolist(), ends, strict=True)]

    def paired(self, first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> Interval:
        """Mean of first - second over the same items; `first[i]` and `second[i]` are scores of item i. Errors as `interval`."""
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} values: a paired comparison needs the same items on both sides")
        return self.interval([a - b for a, b in zip(first, second, strict=True)], groups)

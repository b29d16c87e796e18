"""Has the mix of the data moved? Two tables of counts of one variable, compared. Pure.

1. The population stability index says how far: the sum over the values v of (q_v - p_v) ln(q_v / p_v), p the shares before and q those
   now (N. Siddiqi, Credit Risk Scorecards, Wiley 2006). Usual reading: below 0.1 little, above 0.25 much.
2. The chi-square test of homogeneity (K. Pearson 1900) says whether it may be chance: a small set has a large index by itself, in
   expectation (B - 1)(1/n + 1/m) for B values and n and m records (B. Yurdakul, J. Naranjo, Journal of Risk Model Validation 14, 2020).

It is drift if both say so. A value that one side lacks counts there as half a record, so that the index stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from model.config.choices import Strict

ABSENT = 0.5
"""Records of a value that one side lacks, in the index."""


class Shift(Strict):
    """How far the mix of one variable has moved."""

    data_set: str
    variable: str
    index: float
    """Population stability index; 0 for equal shares."""
    chance: float
    """Probability (0..1) of a shift as large where there is none."""
    before: int
    """Records."""
    now: int

    def drifted(self, above: float, chance: float) -> bool:
        """Whether it is larger than `above`, and not chance."""
        return self.index > above and self.chance < chance


def shift(data_set: str, variable: str, before: Mapping[str, int], now: Mapping[str, int]) -> Shift:
    """Compare two tables of value -> records; an empty one cannot have moved."""
    values = sorted({value for table in (before, now) for value, count in table.items() if count > 0})
    n, m = (sum(table.get(value, 0) for value in values) for table in (before, now))
    if not (n and m):
        return Shift(data_set=data_set, variable=variable, index=0.0, chance=1.0, before=n, now=m)
    pairs = [(before.get(value, 0), now.get(value, 0)) for value in values]
    index = sum(_moved(old or ABSENT, new or ABSENT, n, m) for old, new in pairs)
    return Shift(
        data_set=data_set, variable=variable, index=index, chance=survival(_homogeneity(pairs), len(pairs) - 1), before=n, now=m
    )


def _moved(old: float, new: float, n: int, m: int) -> float:
    return (new / m - old / n) * math.log((new / m) / (old / n))


def _homogeneity(pairs: list[tuple[int, int]]) -> float:
    """Pearson's statistic of a table with two columns."""
    n, m = (sum(pair[side] for pair in pairs) for side in (0, 1))
    total = n + m
    return sum(
        (count - expected) ** 2 / expected
        for pair in pairs
        for count, expected in zip(pair, (sum(pair) * n / total, sum(pair) * m / total), strict=True)
    )


def survival(statistic: float, freedom: int) -> float:
    """Probability that a chi-square variable with `freedom` degrees is above `statistic`; 1 for no freedom.

    The finite sums of Abramowitz and Stegun 26.4.4 and 26.4.5, exact for whole degrees.
    """
    if freedom < 1 or statistic <= 0:
        return 1.0
    half = statistic / 2
    if freedom % 2:
        powers, found = (i + 0.5 for i in range((freedom - 1) // 2)), math.erfc(math.sqrt(half))
    else:
        powers, found = (float(i) for i in range(freedom // 2)), 0.0
    return min(1.0, found + sum(math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers))

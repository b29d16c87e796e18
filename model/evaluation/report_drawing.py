"""Numbers to coordinates for the report's drawings; the template holds the SVG elements and their colours.

1. `curve` turns a loss curve into two SVG paths (as logged, and smoothed) with round axis ticks.
2. `strip` places a figure, its interval and its controls on a line from 0 to 100 %.

Coordinates of curves are those of a box of WIDTH x HEIGHT units; those of strips are percent of the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.evaluation.results import MetricResult

WIDTH, HEIGHT = 320.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 38.0, 8.0, 10.0, 24.0
MAX_POINTS = 400
SMOOTHING_SHARE = 0.05
"""The smoothed line is a running mean over this share of the points."""


@dataclass(frozen=True)
class Tick:
    """A label at a coordinate."""

    at: float
    label: str


@dataclass(frozen=True)
class CurveDrawing:
    """A loss curve as SVG paths."""

    name: str
    path: str
    smooth: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    last: Tick
    """Height and text of the last smoothed value."""
    steps: int


@dataclass(frozen=True)
class Strip:
    """Positions in percent of the width."""

    model: float
    low: float | None
    high: float | None
    blind: float
    majority: float


def curve(name: str, points: Sequence[tuple[int, float]]) -> CurveDrawing | None:
    """The drawing of (step, loss) points; points that are not finite are left out, None if fewer than two remain."""
    kept = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if len(kept) < 2:
        return None
    steps = kept[-1][0]
    if len(kept) > MAX_POINTS:
        stride = math.ceil(len(kept) / MAX_POINTS)
        kept = kept[::stride] + ([kept[-1]] if (len(kept) - 1) % stride else [])
    losses = [loss for _, loss in kept]
    smooth = _running_mean(losses, max(1, round(len(losses) * SMOOTHING_SHARE)))
    y_ticks = _round_ticks(min(losses), max(losses))
    low, high = min(y_ticks[0], min(losses)), max(y_ticks[-1], max(losses))
    first, last = kept[0][0], kept[-1][0]

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(last - first, 1), 1)

    def y(loss: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (loss - low) / max(high - low, 1e-12), 1)

    def path(values: Sequence[float]) -> str:
        return "M" + "L".join(f"{x(step)} {y(value)}" for (step, _), value in zip(kept, values, strict=True))

    return CurveDrawing(
        name=name,
        path=path(losses),
        smooth=path(smooth),
        x_ticks=tuple(Tick(x(step), f"{step:,}") for step in (first, last)),
        y_ticks=tuple(Tick(y(value), text) for value, text in zip(y_ticks, _different(y_ticks), strict=True)),
        last=Tick(y(smooth[-1]), f"{smooth[-1]:.3f}"),
        steps=steps,
    )


def strip(result: MetricResult) -> Strip:
    """Positions of the model's figure, its interval, the blind control and the majority answer."""
    low, high = result.model.low, result.model.high
    return Strip(
        model=_percent(result.model.value),
        low=None if low is None else _percent(low),
        high=None if high is None else _percent(high),
        blind=_percent(result.blind.value),
        majority=_percent(result.majority.value),
    )


def _percent(share: float) -> float:
    """Share to percent of a line with a margin of 2 % at both ends, so that marks at 0 and 1 stay whole."""
    return round(2 + 96 * share, 2)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last `width` values at each place."""
    return [sum(values[max(0, place - width + 1) : place + 1]) / min(width, place + 1) for place in range(len(values))]


def _different(ticks: Sequence[float]) -> list[str]:
    """The ticks in as many digits as it takes to tell them apart, three at least."""
    for digits in range(3, 17):
        texts = [f"{tick:.{digits}g}" for tick in ticks]
        if len(set(texts)) == len(ticks):
            return texts
    return [str(tick) for tick in ticks]


def _round_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that cover low..high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(span))
    step = next(factor * power for factor in (0.2, 0.25, 0.5, 1.0, 2.0, 5.0) if span / (factor * power) <= 4.5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]

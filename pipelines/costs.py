"""Costs and forecasts in words, for the command, the page of a run and `biovlm cost`."""

from __future__ import annotations

from components.platform.cost import Cost
from pipelines.closing import duration
from pipelines.forecast import Error, Forecast

KWH = 3.6e6
"""Joules of a kilowatt-hour."""


def words(cost: Cost) -> str:
    """`3 min 05 s of steps, 12 s of it waiting, 0.42 GPU h, 0.08 kWh (rapl, whole machine), 1.2 MiB moved`.

    What is nothing or not known is left out.
    """
    parts = [f"{duration(cost.wall_seconds)} of steps"]
    if cost.queue_seconds >= 1:
        parts.append(f"{duration(cost.queue_seconds)} of it waiting")
    if cost.gpu_seconds:
        parts.append(f"{cost.gpu_seconds / 3600:.3g} GPU h")
    if cost.energy_joules:
        parts.append(f"{cost.energy_joules / KWH:.3g} kWh ({', '.join(cost.energy_from)}, whole machine)")
    moved = cost.bytes_received + cost.bytes_sent
    if moved:
        parts.append(f"{moved / 2**20:,.1f} MiB moved")
    return ", ".join(parts)


def error_words(error: Error) -> str:
    """`40 s expected, 52 s took: 30 % more, most of it in align`."""
    share = abs(error.ratio - 1)
    more = "as expected" if share < 0.005 else f"{share:.0%} {'more' if error.ratio > 1 else 'less'}, most of it in {error.worst}"
    return f"{duration(error.expected_seconds)} expected, {duration(error.seconds)} took: {more}"


def rows(spent: Cost, saved: Cost, error: Error | None) -> tuple[tuple[str, str], ...]:
    """Label and value of each fact about a run's cost."""
    found = [("this run", words(spent))]
    if saved.wall_seconds:
        found.append(("saved by reuse", words(saved)))
    if error is not None:
        found.append(("forecast", error_words(error)))
    return tuple(found)


def forecast_lines(found: Forecast) -> list[str]:
    """What a run is thought to take, one line a step and one for all."""
    said = [
        f"forecast of {name}: {duration(step.seconds)}{f', {step.gpu_hours:.3g} GPU h' if step.gpu_hours else ''} (from {step.source})"
        for name, step in found.steps.items()
    ]
    if len(found.steps) > 1:
        said.append(f"forecast in all: {duration(found.seconds)}{f', {found.gpu_hours:.3g} GPU h' if found.gpu_hours else ''}")
    if found.unknown:
        said.append(
            f"no forecast of {', '.join(found.unknown)}: none was measured yet by as many workers on this kind of machine"
        )
    return said

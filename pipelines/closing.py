"""What a person sees when a run has ended: one table, the decision, and where to look next; readable at 80 columns.

1. `table` draws the steps of a `RunResult`: time, what happened, key figures.
2. `lines` says version, decision with its reasons, and the commands that show more: those that ask a server only if it is still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.summary import RunResult, StepResult

STYLES = {"failed": "red", "stopped": "yellow", "not reached": "dim"}


def table(result: RunResult) -> Table:
    """The steps, one a row."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("step", no_wrap=True)
    made.add_column("time", justify="right", no_wrap=True)
    made.add_column("what happened")
    made.add_column("figures", ratio=1)
    for step in result.steps:
        spent = "" if step.state == "not reached" else duration(step.seconds)
        made.add_row(step.name, spent, _outcome(step), figures(step.figures), style=STYLES.get(step.state, ""))
    return made


def lines(result: RunResult) -> list[str]:
    """What the run came to, and where to look next."""
    said = [f"{result.recipe}: {_count(result)} in {duration(result.seconds)}"]
    if result.version:
        said.append(f"version:  {result.registered_model} {result.version}")
    if result.decision:
        said.append(f"decision: {result.decision.replace('_', ' ')}")
        said += [f"          - {reason}" for reason in result.reasons]
    said += [f"{label + ':':<9} {value}" for label, value in _cost(result)]
    said.append("")
    if result.report:
        said.append(f"report:   {result.report}")
    said += _of_the_registry(result) if result.tracking else ["registry: ended with the run, and the version with it"]
    said.append(f"logs:     {result.folder}")
    return said


def _of_the_registry(result: RunResult) -> list[str]:
    """What a tracking store that is still there can be asked."""
    said = []
    if result.version:
        said.append(f"lineage:  biovlm lineage show models:/{result.registered_model}/{result.version}")
    if result.decision == "promote":
        said.append(f"ask it:   biovlm chat --model models:/{result.registered_model}@champion --image FILE")
        said.append(f"serve it: biovlm serve --model models:/{result.registered_model}@champion")
    said.append(f"curves:   mlflow ui --backend-store-uri {result.tracking}")
    return said


def _cost(result: RunResult) -> list[tuple[str, str]]:
    """What reuse saved and how wrong the forecast was; the time itself stands above."""
    from pipelines import costs

    return [
        ("cost" if label == "this run" else label, value)
        for label, value in costs.rows(result.cost, result.saved, result.forecast)
    ]


def figures(found: Mapping[str, Any]) -> str:
    """Key figures of a step in words."""
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in found.items())


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 04 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _number(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def _count(result: RunResult) -> str:
    """`7 ran, 1 reused, 1 checked`."""
    states = [step.state for step in result.steps]
    named = [(states.count(state), state) for state in ("ran", "reused", "checked", "failed", "stopped", "not reached")]
    return ", ".join(f"{count} {state}" for count, state in named if count)


def _outcome(step: StepResult) -> str:
    return f"resumed from {step.resumed_from}" if step.state == "ran" and step.resumed_from is not None else step.state

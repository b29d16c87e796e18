"""What a person sees while a run goes on: each step, and the time left of the present one.

1. `pipelines.local.run` calls the display with every event of the run's log; nothing else feeds it.
2. `Progress` keeps, for each step, what the events said: running, reused, resumed, done; units done and the time they took.
3. On a terminal the steps are redrawn in place; elsewhere each change is a line. With `--json` nobody looks: see `Silent`.

Everything goes to stderr: stdout is for data. What is shown when the run has ended stands in `pipelines/closing.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from components.platform.events import Event, EventType
from pipelines.closing import duration, figures

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

TITLES = {
    "preflight": "checks",
    "data": "data",
    "align": "align: connector",
    "instruct": "instruct: + LoRA",
    "task": "task: new LoRA",
    "evaluate": "evaluate",
    "champion": "evaluate champion",
    "register": "register",
    "promote": "promote",
}
LEAST_SHARE = 0.02
"""Share of a step that must be done before its end is guessed."""
PLAIN_EVERY_SECONDS = 10.0
BAR_CELLS = 8


@dataclass
class StepView:
    """What is known of one step."""

    name: str
    state: str = "waiting"
    """waiting, running, or the outcome of its last event."""
    began: float = 0.0
    ended: float = 0.0
    first_done: int = 0
    """Units that an earlier attempt had done; they say nothing about this one's speed."""
    first_time: float = 0.0
    done: int = 0
    total: int = 0
    unit: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    resumed_from: int | None = None
    note: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Take in one event of this step."""
        if event.type is EventType.STEP_STARTED:
            self.state, self.began = "running", self.began or event.time
            self.first_time, self.first_done = event.time, self.done
        elif event.type is EventType.PROGRESS and event.done is not None:
            if not self.done and not self.resumed_from:
                self.first_time, self.first_done = event.time, event.done
            self.done, self.total, self.unit = event.done, event.total or self.total, event.unit or self.unit
            self.metrics = event.metrics or self.metrics
        elif event.type is EventType.RESUMED:
            self.resumed_from = self.done = self.first_done = event.done or 0
            self.first_time = event.time
        elif event.type is EventType.NOTE:
            self.note = event.message
        elif event.outcome:
            self.state, self.ended = event.outcome, event.time
            self.note, self.figures = event.message or self.note, event.facts.get("figures") or {}

    def seconds(self, now: float) -> float:
        """Wall time so far."""
        return max(0.0, (self.ended or now) - self.began) if self.began else 0.0

    def seconds_left(self, now: float) -> float | None:
        """A guess from the speed since the step (or its last attempt) began; None while there is nothing to guess from."""
        new = self.done - self.first_done
        if self.state != "running" or new <= 0 or self.total <= 0 or new < LEAST_SHARE * self.total:
            return None
        left = (self.total - self.done) / new * (now - self.first_time)
        return max(0.0, left)


class Progress:
    """The state of a run, from its events."""

    def __init__(self) -> None:
        self.steps: dict[str, StepView] = {}
        self.recipe = ""
        self.notes: list[str] = []

    def apply(self, event: Event) -> None:
        """Take in one event."""
        if event.type is EventType.RUN_STARTED:
            self.recipe = str(event.facts.get("recipe", ""))
            self.steps = {name: StepView(name) for name in event.facts.get("steps", ())}
        elif event.step:
            self.steps.setdefault(event.step, StepView(event.step)).apply(event)
        elif event.type is EventType.NOTE:
            self.notes.append(event.message)


class Silent:
    """Shows nothing, and keeps the state for whoever asks at the end."""

    def __init__(self) -> None:
        self.progress = Progress()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to close."""

    def __call__(self, event: Event) -> None:
        self.progress.apply(event)


class Lines(Silent):
    """One line for each change: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._shown = console, 0.0

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        line = self._line(event)
        if line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, event: Event) -> str:
        step = self.progress.steps.get(event.step)
        if step is None:
            return event.message if event.type is EventType.NOTE else ""
        if event.type is EventType.PROGRESS:
            if event.time - self._shown < PLAIN_EVERY_SECONDS:
                return ""
            self._shown = event.time
            return f"{step.name}: {_units(step)}{_left(step, event.time)}"
        if event.type is EventType.STEP_STARTED:
            return f"{step.name}: started" if event.attempt == 1 else f"{step.name}: started again (attempt {event.attempt})"
        if event.type is EventType.RESUMED:
            return f"{step.name}: resumed from step {event.done}"
        if event.outcome:  # why it failed is said once, at the end
            return f"{step.name}: {_outcome(step)} in {duration(step.seconds(event.time))}"
        return f"{step.name}: {event.message}"


class LiveView(Silent):
    """The steps, redrawn in place."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        super().__init__()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        from rich.table import Table

        now = time.time()
        grid = Table.grid(padding=(0, 1))
        grid.add_column(min_width=2, no_wrap=True)
        grid.add_column(min_width=19, no_wrap=True)
        grid.add_column(min_width=12, justify="right", no_wrap=True)
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for step in self.progress.steps.values():
            mark, style = MARKS[step.state]
            time_text = duration(step.seconds(now)) if step.began else ""
            grid.add_row(mark, TITLES.get(step.name, step.name), time_text, _now(step, now), style=style)
        return grid


MARKS = {
    "waiting": ("  ", "dim"),
    "running": ("> ", "bold"),
    "ran": ("ok", ""),
    "checked": ("ok", ""),
    "reused": ("=", "dim"),
    "stopped": ("||", "yellow"),
    "failed": ("!!", "red"),
}


def choose(console: Console, silent: bool) -> Silent:
    """The display for this console."""
    if silent:
        return Silent()
    return LiveView(console) if console.is_terminal else Lines(console)


def _outcome(step: StepView) -> str:
    if step.state == "ran" and step.resumed_from is not None:
        return f"resumed from step {step.resumed_from}"
    return {"waiting": "not reached", "running": "stopped"}.get(step.state, step.state)


def _now(step: StepView, now: float) -> str:
    """What a running step is at; the outcome of one that ended."""
    if step.state == "waiting":
        return ""
    if step.state != "running":
        return figures(step.figures) or (step.note if step.state == "failed" else _outcome(step))
    if not step.total:
        return step.note
    filled = min(BAR_CELLS, BAR_CELLS * step.done // step.total)
    loss = f"  loss {step.metrics['loss']:.2f}" if "loss" in step.metrics else ""
    return f"{'━' * filled}{'╌' * (BAR_CELLS - filled)} {_units(step)}{_left(step, now)}{loss}"


def _units(step: StepView) -> str:
    return f"{step.done:,}/{step.total:,} {step.unit}".rstrip()


def _left(step: StepView, now: float) -> str:
    left = step.seconds_left(now)
    return f", {duration(max(1.0, round(left)))} left" if left is not None else ""

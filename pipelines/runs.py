"""What a run on a cluster is at: pure, from what the KFP API says of it.

1. `view` turns a run of the API into a `RunView`: our nine steps by our names, in order, without the drivers and executors of Argo.
2. `changes` says in lines what is new since the last look.
3. `letter` is what a run that is over ends a command with. KFP knows only that a step failed; why, our own letter says (`letters.py`).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.errors import BiovlmError, InternalError, PreemptedError
from pipelines.closing import duration

TASKS = {
    "preflight": "preflight",
    "data": "data",
    "train": "align",
    "train-2": "instruct",
    "train-3": "task",
    "evaluate": "evaluate",
    "evaluate-2": "champion",
    "register": "register",
    "promote": "promote",
}
"""Name of a task in the package -> name of our step; a test compares it with the package."""
OVER = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
STATES = {
    "RUNTIME_STATE_UNSPECIFIED": "waiting",
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELING": "stopping",
    "CANCELED": "stopped",
    "PAUSED": "paused",
}
"""The API's word -> ours; an unknown word is shown as it is."""


@dataclass(frozen=True)
class StepView:
    """One step of a run."""

    name: str
    state: str
    seconds: float | None = None
    """Wall time; empty for a step that has not begun."""
    said: str = ""
    """What KFP says of its failure."""
    pods: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunView:
    """A run."""

    run_id: str
    name: str
    state: str
    created: str
    seconds: float | None
    over: bool
    steps: tuple[StepView, ...] = field(default=())

    @property
    def failed(self) -> StepView | None:
        """The first step that failed, in the pipeline's order."""
        return next((step for step in self.steps if step.state == "failed"), None)


def view(run: Any, now: datetime.datetime | None = None) -> RunView:
    """What the API's `V2beta1Run` says; `now` for steps that are running."""
    moment = now or datetime.datetime.now(datetime.UTC)
    details = (run.run_details.task_details if run.run_details else None) or ()
    found = {detail.display_name: detail for detail in details}
    return RunView(
        run_id=run.run_id,
        name=run.display_name or "",
        state=STATES.get(run.state, str(run.state).lower()),
        created=run.created_at.strftime("%Y-%m-%d %H:%M") if run.created_at else "",
        seconds=_between(run.created_at, run.finished_at, moment),
        over=run.state in OVER,
        steps=tuple(_step(name, found.get(task), moment) for task, name in TASKS.items()),
    )


def _step(name: str, detail: Any, now: datetime.datetime) -> StepView:
    if detail is None:
        return StepView(name, "waiting")
    pods = tuple(child.pod_name for child in detail.child_tasks or () if child.pod_name) or (detail.pod_name,)
    return StepView(
        name=name,
        state=STATES.get(detail.state, str(detail.state).lower()),
        seconds=_between(detail.start_time, detail.end_time, now),
        said=(detail.error.message or "") if detail.error else "",
        pods=tuple(pod for pod in pods if pod),
    )


def _between(began: datetime.datetime | None, ended: datetime.datetime | None, now: datetime.datetime) -> float | None:
    # A server writes 1970 where it means "not yet".
    if began is None or began.year < 2000:
        return None
    return max(0.0, ((ended if ended and ended.year >= 2000 else now) - began).total_seconds())


def changes(before: RunView | None, after: RunView) -> list[str]:
    """Lines about the steps that are in another state than before."""
    was = {step.name: step.state for step in before.steps} if before else {}
    return [line(step) for step in after.steps if step.state not in ("waiting", was.get(step.name))]


def line(step: StepView) -> str:
    """`align: done in 3 min 05 s`."""
    spent = f" in {duration(step.seconds)}" if step.seconds is not None and step.state in ("done", "failed", "stopped") else ""
    return f"{step.name}: {step.state}{spent}"


def letter(run: RunView, said: BiovlmError | None) -> BiovlmError | None:
    """How a run that is over ends the command that waited for it; None for success.

    Args:
        run: The run.
        said: The letter of the step that failed, if anyone could read it.
    """
    if run.state in ("done", "skipped"):
        return None
    if run.state == "stopped":
        return PreemptedError(f"the run {run.run_id} was stopped", f"`biovlm retry {run.run_id}` goes on from where it stopped")
    if said is not None:
        return said
    step = run.failed
    what = f"{step.name} failed{f': {step.said}' if step.said else ''}" if step else "the run failed before any step"
    return InternalError(f"{what}; its letter could not be read", f"`biovlm status {run.run_id}` shows its steps")


def as_json(run: RunView) -> Mapping[str, Any]:
    """For programs."""
    steps = [{"name": s.name, "state": s.state, "seconds": s.seconds, "said": s.said, "pods": list(s.pods)} for s in run.steps]
    return {
        "run_id": run.run_id,
        "name": run.name,
        "state": run.state,
        "created": run.created,
        "seconds": run.seconds,
        "steps": steps,
    }

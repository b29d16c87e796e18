"""What a run came to: a `RunResult` for the command, and `report.html` for people.

1. `summarise` reads the event log and the artifacts that it names; nothing else remembers anything.
2. If there is a report of the candidate, the page is written into the run's folder. Loss curves of reused stages come from the
   run that trained them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from components.platform import cost as costs
from components.platform import events, inputs, reference
from components.platform.cost import Cost
from components.platform.events import Event, EventType
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.store import open_store
from model.config import STAGE_NAMES, Recipe
from model.errors import BiovlmError, ExitCode
from pipelines.costs import rows
from pipelines.forecast import Error, compare, kept

STEPS = ("preflight", "data", *STAGE_NAMES, "evaluate", "champion", "register", "promote")
CURVE_POINTS = 400


class StepResult(BaseModel):
    """One step of a run that ended."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str = Field(description="ran, reused, checked, failed, stopped or not reached.")
    seconds: float = Field(default=0.0, description="Wall time.")
    resumed_from: int | None = Field(default=None, description="Optimizer step from which a stage went on.")
    figures: dict[str, Any] = Field(default_factory=dict)
    folder: str = Field(default="", description="Its artifact.")


class RunResult(BaseModel):
    """A run that ended, well or not."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    run_id: str
    folder: str = Field(description="Events, logs and the report of the run.")
    recipe: str
    seconds: float
    exit_code: int
    steps: tuple[StepResult, ...]
    registered_model: str
    version: str = Field(default="", description="Version of the candidate; empty if the run did not get so far.")
    decision: str = Field(default="", description="promote, hold or not_enough_data.")
    reasons: tuple[str, ...] = Field(default=(), description="Why it is not `promote`.")
    report: str = Field(default="", description="Path of the page; empty if there is nothing to show.")
    cost: Cost = Field(default=Cost(), description="Of the steps that ran.")
    saved: Cost = Field(default=Cost(), description="What the steps that were reused had cost.")
    forecast: Error | None = Field(default=None, description="How wrong the forecast was; empty if there was none.")
    tracking: str = Field(default="", exclude=True, description="Address of the tracking store; empty if it ended with the run.")
    error: BiovlmError | None = Field(default=None, exclude=True)


def summarise(settings: Settings, recipe: Recipe, error: BiovlmError | None, seconds: float) -> RunResult:
    """Gather the run of `settings`, and write its page.

    Args:
        settings: Of the run.
        recipe: What was run.
        error: Why it failed, if it did.
        seconds: Wall time.
    """
    log = events.read(settings.events)
    steps = tuple(_step(name, [event for event in log if event.step == name]) for name in STEPS)
    store = open_store(settings)
    artifacts = {
        step.name: Reference.to(Path(step.folder), store.manifest_of(store.uri(Path(step.folder))))
        for step in steps
        if step.folder
    }
    receipt, decision = (artifacts[name].facts if name in artifacts else {} for name in ("register", "promote"))
    spent, saved = costs.of_run(log)
    whole = costs.total(spent.values()), costs.total(saved.values())
    error_of_forecast = compare(kept(settings.run_folder), spent)
    told = rows(*whole, error_of_forecast)
    page = _page(settings, recipe, steps, artifacts, told) if "evaluate" in artifacts else None
    return RunResult(
        run_id=settings.run_id,
        folder=str(settings.run_folder),
        recipe=recipe.name,
        seconds=seconds,
        exit_code=int(error.exit_code if error else ExitCode.DONE),
        steps=steps,
        registered_model=recipe.registered_model,
        version=str(receipt.get("version", "")),
        decision=str(decision.get("verdict", "")),
        reasons=tuple(reason["message"] for reason in decision.get("reasons", ()) if not reason["passed"]),
        report=str(page or ""),
        cost=whole[0],
        saved=whole[1],
        forecast=error_of_forecast,
        tracking=settings.tracking_uri,
        error=error,
    )


def _step(name: str, mine: list[Event]) -> StepResult:
    """The result of one step from its events."""
    if not mine:
        return StepResult(name=name, state="not reached")
    end = next((event for event in reversed(mine) if event.outcome), None)
    resumed = [event.done for event in mine if event.type is EventType.RESUMED]
    facts = end.facts if end else {}
    return StepResult(
        name=name,
        state=end.outcome if end else "stopped",
        seconds=(end or mine[-1]).time - mine[0].time,
        resumed_from=resumed[-1] if resumed else None,
        figures=facts.get("figures", {}),
        folder=facts.get("folder", ""),
    )


def _page(
    settings: Settings,
    recipe: Recipe,
    steps: tuple[StepResult, ...],
    artifacts: Mapping[str, Reference],
    cost: tuple[tuple[str, str], ...],
) -> Path:
    """Write `report.html`; its path."""
    from model.evaluation.report import Curve, ReportInputs, Step, write_report  # jinja2 and PIL
    from model.evaluation.results import read_report

    receipt, decision = artifacts.get("register"), artifacts.get("promote")
    before = decision.facts["champion_before"] if decision else reference.NONE
    page = ReportInputs(
        name=recipe.registered_model,
        version=str(receipt.facts["version"]) if receipt else "not registered",
        report=read_report(_folder(settings, artifacts["evaluate"])),
        description=recipe.description,
        recipe=recipe.name,
        run_id=settings.run_id,
        created=time.strftime("%Y-%m-%d %H:%M"),
        decision=_decision(decision),
        champion="" if before == reference.NONE else str(before),
        curves=tuple(Curve(stage, points) for stage in STAGE_NAMES if (points := _curve(settings, stage, artifacts))),
        data=_data(artifacts["data"]),
        lineage=tuple((name, f"{ref.kind} {ref.digest}") for name, ref in artifacts.items()),
        cost=cost,
        samples=_samples(settings, recipe, artifacts),
        steps=tuple(Step(step.name, step.seconds, "done" if step.state in ("ran", "checked") else step.state) for step in steps),
    )
    path = settings.run_folder / "report.html"
    write_report(page, path)
    return path


def _folder(settings: Settings, artifact: Reference) -> Path:
    """The artifact's folder on this machine."""
    store = open_store(settings)
    return store.fetch(store.uri(artifact.folder), artifact.digest)


def _decision(found: Reference | None) -> Any:
    from model.evaluation.decision import Decision, Reason, Verdict

    if found is None:
        return None
    return Decision(Verdict(found.facts["verdict"]), tuple(Reason(**reason) for reason in found.facts["reasons"]))


def _curve(settings: Settings, stage: str, artifacts: Mapping[str, Reference]) -> tuple[tuple[int, float], ...]:
    """Loss by optimizer step, thinned; from the log of the run that trained the stage."""
    if stage not in artifacts:
        return ()
    record = open_store(settings).record("train", artifacts[stage].folder.name)
    log = settings.home / "runs" / (record.run_id if record else settings.run_id) / "events.jsonl"
    points = {e.done: e.metrics["loss"] for e in events.read(log) if e.step == stage and e.done and "loss" in e.metrics}
    ordered = sorted(points.items())
    return tuple(ordered[:: max(1, len(ordered) // CURVE_POINTS)])


def _data(data: Reference) -> tuple[tuple[str, str], ...]:
    """Data sets and base models with digest, revision and licence."""
    return tuple(
        (name, f"{facts['digest'][:16]}, revision {facts['revision'][:12]}, {facts['licence']}")
        for group in ("sets", "bases")
        for name, facts in data.facts[group].items()
    )


def _samples(settings: Settings, recipe: Recipe, artifacts: Mapping[str, Reference]) -> Any:
    """Questions of the first benchmark, with pictures."""
    from model.data.dataset import Audit
    from model.evaluation.report import choose_samples
    from model.evaluation.results import read_items

    first = recipe.evaluation.benchmarks[0]
    folder = inputs.verified(artifacts["data"], open_store(settings), [first.set])["sets"][first.set]
    items = read_items(_folder(settings, artifacts["evaluate"]))
    mine = [item for item in items if item.benchmark == f"{first.benchmark}/{first.set}/{first.split}"]
    audit = Audit(**inputs.audit(artifacts["data"], [first.set]))
    return choose_samples(audit.open(first.set, folder, verify=False), first.split, mine)

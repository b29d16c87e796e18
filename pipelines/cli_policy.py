"""`biovlm run` and `biovlm plan` with `--policy FILE`: a policy says which recipe, and whether.

`run --if-changed --policy FILE` is made for a machine's own clock (cron, a systemd timer): call it as often as you like; it looks when the
policy's cron expression has come, and an unchanged month costs seconds.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import BiovlmError, UsageError
from pipelines import output
from pipelines.cli_options import DEFAULT

if TYPE_CHECKING:
    from pipelines.retraining import Look
    from pipelines.summary import RunResult

MARKS = {"for": "+", "against": "-", "note": " "}


def alone(recipe: str, data: str | None, changes: Sequence[str] | None, if_changed: bool = True) -> None:
    """UsageError if a policy is given with what it says itself, or without `--if-changed`."""
    if recipe != DEFAULT or data is not None or changes:
        raise UsageError("a policy names recipe, data and changes itself", "give --policy alone, or edit the policy")
    if not if_changed:
        raise UsageError(
            "a policy decides whether to run", "give --if-changed with it; `biovlm run --recipe NAME` runs in any case"
        )


def plan(path: Path, json: bool) -> None:
    """What the policy would do now, and why."""
    from components.platform.settings import Settings
    from pipelines import cli_run, retraining

    found = retraining.look(retraining.read(path), Settings.from_environment(), _now())
    steps, shown = cli_run.planned(found.plan.recipe)
    if json:
        output.emit_json({**retraining.as_json(found), "steps": steps})
        return
    for line in (*lines(found), "", *shown):
        output.emit(line)


def run(path: Path, runner: str, json: bool) -> None:
    """Run the policy's recipe if the policy says so; the look and its end go into the policy's history."""
    from components.platform.settings import Settings
    from pipelines import cli_run, retraining

    settings = Settings.from_environment()
    found = retraining.look(retraining.read(path), settings, _now())
    retraining.keep(found, settings)
    if found.decision.verdict == "skip":
        if json:
            output.emit_json(retraining.as_json(found))
        else:
            output.emit(found.decision.summary)
        return
    output.say(found.decision.summary)
    try:
        taken = retraining.take(found, settings)
    except BiovlmError as error:
        retraining.close(found, settings, error.exit_code, "none")
        raise
    if taken is not None:
        output.say(f"{taken.learned} corrections taken into the data registry, {taken.left_out} left out")

    def ended(result: RunResult) -> None:
        retraining.close(found, settings, result.exit_code, result.run_id)

    cli_run.execute(
        found.plan.recipe, runner, json, ended, dataclasses.replace(settings, trigger=f"policy:{found.plan.policy.name}")
    )


def lines(found: Look) -> list[str]:
    """What a policy says at this moment, for people: the verdict, each reason (+ for, - against), and how it would go on."""
    policy, recipe, decision = found.plan.policy, found.plan.recipe, found.decision
    said = [f"policy {policy.name}: {decision.verdict}"]
    said += [f"  {MARKS[str(reason.effect)]} {reason.text}" for reason in decision.reasons]
    cost = "not known" if found.facts.gpu_hours is None else f"{found.facts.gpu_hours:,.1f} GPU hours"
    said.append(f"cost:     {cost} from the beginning, budget {policy.budget.gpu_hours:g}; what is reused costs nothing")
    said.append(f"compared: with models:/{recipe.registered_model}@champion, on the same questions")
    said.append(f"promoted: {policy.promote.value.replace('_', ' ')}")
    if found.next_moment is not None:
        said.append(f"next:     {found.next_moment:%Y-%m-%d %H:%M} UTC ({policy.when.cron}, {policy.when.time_zone})")
    return said


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

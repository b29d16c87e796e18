"""`biovlm run`, `plan` and `compile`: the whole pipeline. What a policy decides stands in `cli_policy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import UsageError
from pipelines import output
from pipelines.cli_options import DEFAULT, SHOWN, Changes, Data, Json, RecipeName

if TYPE_CHECKING:
    from components.platform.settings import Settings
    from model.config import Recipe
    from pipelines.summary import RunResult

RunnerName = Annotated[
    str, typer.Option("--runner", help="What a step is: subprocess, or docker (after `make images`).", metavar="RUNNER")
]
IfChanged = Annotated[bool, typer.Option("--if-changed", help="Run only if a training stage would; else say `unchanged`.")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="A retraining policy: names the recipe, and decides.", metavar="FILE")
]
RUNNERS = ("subprocess", "docker")


def run(
    recipe: RecipeName = DEFAULT,
    data: Data = None,
    changes: Changes = None,
    runner: RunnerName = "subprocess",
    if_changed: IfChanged = False,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline on this machine; what has not changed is reused."""
    if runner not in RUNNERS:
        raise UsageError(f"unknown runner {runner!r}", f"runners: {', '.join(RUNNERS)}")
    if policy is not None:
        from pipelines import cli_policy

        cli_policy.alone(recipe, data, changes, if_changed)
        cli_policy.run(policy, runner, json)
        return
    from pipelines.choice import chosen

    wanted = chosen(recipe, data, changes or ())
    if if_changed and _unchanged(wanted, json):
        return
    execute(wanted, runner, json)


def execute(
    wanted: Recipe,
    runner: str,
    json: bool,
    ended: Callable[[RunResult], object] | None = None,
    settings: Settings | None = None,
) -> None:
    """Run a recipe, show it, and end as it ended.

    Args:
        wanted: The recipe.
        runner: What a step is.
        json: Print the result as JSON, and show nothing meanwhile.
        ended: Is told the result, also of a run that failed.
        settings: Where; from the environment, unless given.
    """
    from pipelines import display, local  # after what can be said at once

    with display.choose(output.console(), silent=json) as shown:
        result = local.run(wanted, shown, settings, local.Runner(runner))
    if ended is not None:
        ended(result)
    if json:
        output.emit_json(result.model_dump(mode="json"))
    else:
        _close(result)
    if result.error is not None:
        raise result.error


def plan(
    recipe: RecipeName = DEFAULT, data: Data = None, changes: Changes = None, policy: PolicyFile = None, json: Json = False
) -> None:
    """Say which steps a run would execute, which it would reuse, and why; with a policy, whether it would. Runs nothing."""
    if policy is not None:
        from pipelines import cli_policy

        cli_policy.alone(recipe, data, changes)
        cli_policy.plan(policy, json)
        return
    from pipelines.choice import chosen

    rows, lines = planned(chosen(recipe, data, changes or ()))
    if json:
        output.emit_json(rows)
        return
    for line in lines:
        output.emit(line)


def planned(wanted: Recipe) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps of a run of a recipe, for programs and for people: why, in how much memory, in how much time."""
    from dataclasses import asdict

    from components.platform.settings import Settings
    from pipelines import costs, forecast  # after what can be said at once
    from pipelines import plan as plans

    settings = Settings.from_environment()
    steps = plans.plan(wanted, settings)
    expected = forecast.forecast(wanted, steps, forecast.earlier(settings), settings)
    known = {name: one.model_dump() for name, one in expected.steps.items()}
    rows = [(step.name, "reuse" if step.reused else "run", (step.key or "-")[:SHOWN], step.reason) for step in steps]
    lines = output.table(("step", "would", "key", "because"), rows)
    lines += [f"memory of {step.name}: {step.memory.text}" for step in steps if step.memory is not None]
    return [{**asdict(step), "expected": known.get(step.name)} for step in steps], [*lines, *costs.forecast_lines(expected)]


def _unchanged(wanted: Recipe, json: bool) -> bool:
    """Whether every training stage is in the store; says so."""
    from components.platform.settings import Settings
    from pipelines import plan as plans

    if any(
        step.kind == "train" and not step.reused for step in plans.plan(wanted, Settings.from_environment(), ask_registry=False)
    ):
        return False
    text = f"unchanged: every stage of {wanted.name} is in the store under its key"
    if json:
        output.emit_json({"verdict": "skip", "unchanged": True, "recipe": wanted.name})
    else:
        output.emit(text)
    return True


def compile_pipeline(
    out: Annotated[Path | None, typer.Option("--out", help="Where to; pipelines/compiled/biovlm.yaml.", metavar="FILE")] = None,
    launcher: Annotated[str | None, typer.Option("--launcher-image", help="Of the steps, by digest.", metavar="IMAGE")] = None,
    train: Annotated[str | None, typer.Option("--train-image", help="Of the Ray workers, by digest.", metavar="IMAGE")] = None,
) -> None:
    """Compile the pipeline; with images by digest, for a Kubeflow server."""
    from model.errors import UsageError
    from pipelines import biovlm, submit
    from pipelines.pods import Images

    path = out or biovlm.COMPILED
    if (launcher is None) != (train is None):
        raise UsageError("a cluster needs both images", "give --launcher-image and --train-image")
    biovlm.compile_to(path, submit.checked(Images(launcher, train)) if launcher and train else Images())
    output.emit(str(path))


def _close(result: RunResult) -> None:
    """The table, and where to look next."""
    from pipelines import closing

    output.show(closing.table(result))
    for line in closing.lines(result):
        output.say(line)

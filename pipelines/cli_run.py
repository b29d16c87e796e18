"""`biovlm run`, `plan` and `compile`: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UsageError
from pipelines import output

if TYPE_CHECKING:
    from pipelines.summary import RunResult

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Name of a recipe, or path of a YAML file.", metavar="RECIPE")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: stages.task.epochs=2; may be repeated.", metavar="A.B=VALUE")
]
Data = Annotated[str | None, typer.Option("--data", help="Task stage and evaluation on this data set.", metavar="NAME")]
RunnerName = Annotated[
    str, typer.Option("--runner", help="What a step is: subprocess, or docker (after `make images`).", metavar="RUNNER")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT = "tiny"
RUNNERS = ("subprocess", "docker")
SHOWN = 12
"""Hex digits of a digest that a reader sees."""


def run(
    recipe: RecipeName = DEFAULT,
    data: Data = None,
    changes: Changes = None,
    runner: RunnerName = "subprocess",
    json: Json = False,
) -> None:
    """Run the whole pipeline on this machine; what has not changed is reused."""
    if runner not in RUNNERS:
        raise UsageError(f"unknown runner {runner!r}", f"runners: {', '.join(RUNNERS)}")
    from pipelines.choice import chosen

    wanted = chosen(recipe, data, changes or ())
    from pipelines import display, local  # after what can be said at once

    with display.choose(output.console(), silent=json) as shown:
        result = local.run(wanted, shown, runner=local.Runner(runner))
    if json:
        output.emit_json(result.model_dump(mode="json"))
    else:
        _close(result)
    if result.error is not None:
        raise result.error


def plan(recipe: RecipeName = DEFAULT, data: Data = None, changes: Changes = None, json: Json = False) -> None:
    """Say which steps a run would execute, which it would reuse, and why. Runs nothing."""
    from dataclasses import asdict

    from components.platform.settings import Settings
    from pipelines.choice import chosen

    wanted = chosen(recipe, data, changes or ())
    from pipelines import plan as plans  # after what can be said at once

    steps = plans.plan(wanted, Settings.from_environment())
    if json:
        output.emit_json([asdict(step) for step in steps])
        return
    rows = [(step.name, "reuse" if step.reused else "run", (step.key or "-")[:SHOWN], step.reason) for step in steps]
    output.emit_table(("step", "would", "key", "because"), rows)
    for step in steps:
        if step.memory is not None:
            output.emit(f"memory of {step.name}: {step.memory.text}")


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

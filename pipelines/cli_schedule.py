"""`biovlm schedule ...`: runs that come back, declared in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import output
from pipelines.cli_options import Json

Schedules = Annotated[Path, typer.Argument(help="A YAML file of schedules, or a retraining policy.", metavar="FILE")]
SPEC = 12
"""Hex digits of a digest that a reader sees."""


def apply(
    file: Schedules,
    prune: Annotated[bool, typer.Option("--prune", help="Also delete schedules of biovlm that the file does not name.")] = False,
) -> None:
    """Make the server's schedules those of the file; refuse one whose runs are thought to cost more than its budget."""
    from components.platform.addresses import Addresses
    from components.platform.settings import Settings
    from model.config import Recipe
    from model.errors import DataError
    from pipelines import cluster, estimate, schedule_server, schedules, submit

    addresses = Addresses.from_environment()
    wanted = schedules.read(file, addresses.time_zone)
    for wish in wanted:
        recipe, budget = Recipe.model_validate_json(wish.parameters["recipe"]), float(wish.parameters["budget"])
        estimate.refuse(recipe, budget, Settings.from_environment())
    server = cluster.connect(addresses)
    done = schedule_server.apply(server, wanted, submit.package(addresses), Settings.from_environment().experiment)
    words = {"make": "made", "replace": "replaced", "tidy": "tidied", "same": "unchanged"}
    words["lost"] = "not made: another file that names it was applied at the same moment"
    for one in done:
        output.emit(f"{one.name}: {words[one.word]}{'' if one.enabled else ', paused'}")
        for line in one.why:
            output.say(f"  {line}")
    if prune:
        for gone in schedule_server.prune(server, wanted):
            output.emit(f"{gone.name}: deleted")
    else:
        _say_extra(server, wanted)
    if lost := [one.name for one in done if one.word == "lost"]:
        raise DataError(
            f"another file's schedule stays for {', '.join(lost)}",
            f"name it in one file; `biovlm schedule diff {file}` shows what stands there, and `apply` once more replaces it",
        )


def diff(file: Schedules, json: Json = False) -> None:
    """Say what `apply` would change; exit code 0 if that is nothing, else 65."""
    from components.platform.addresses import Addresses
    from model.errors import DataError
    from pipelines import cluster, schedule_server, schedules

    addresses = Addresses.from_environment()
    wanted = schedules.read(file, addresses.time_zone)
    server = cluster.connect(addresses)
    found = schedule_server.diff(server, wanted)
    if json:
        output.emit_json([{"name": one.name, "would": decision.word, "why": list(decision.why)} for one, decision in found])
    else:
        for one, decision in found:
            output.emit(f"{one.name}: {decision.word}")
            for line in decision.why:
                output.emit(f"  {line}")
        _say_extra(server, wanted)
    changed = [one.name for one, decision in found if decision.word != "same"]
    if changed:
        raise DataError(f"the server differs from {file}: {', '.join(changed)}", f"`biovlm schedule apply {file}` settles it")


def list_schedules(json: Json = False) -> None:
    """Show the schedules of biovlm on the server."""
    from dataclasses import asdict

    from pipelines import cluster, schedules

    found = schedules.found(cluster.connect().schedules())
    if json:
        output.emit_json([asdict(one) for one in found])
    elif found:
        rows = [
            (one.name, one.cron, "runs" if one.enabled else "paused", str(one.parameters.get("budget", "")), one.spec[:SPEC])
            for one in found
        ]
        output.emit_table(("schedule", "cron", "state", "GPU hours", "spec"), rows)
    else:
        output.say("no schedules yet; `biovlm schedule apply FILE` makes them")


def pause(file: Schedules) -> None:
    """Let the schedules of the file start no more runs."""
    _switch(file, False)


def resume(file: Schedules) -> None:
    """Let the schedules of the file start runs again."""
    _switch(file, True)


def _switch(file: Path, enabled: bool) -> None:
    from components.platform.addresses import Addresses
    from pipelines import cluster, schedule_server, schedules

    addresses = Addresses.from_environment()
    wanted = schedules.read(file, addresses.time_zone)
    for one in schedule_server.switch(cluster.connect(addresses), wanted, enabled):
        output.emit(f"{one.name}: {'runs' if enabled else 'paused'}")


def _say_extra(server: object, wanted: object) -> None:
    from pipelines import schedule_server

    for one in schedule_server.extra(server, wanted):  # type: ignore[arg-type]  # imported where it is needed
        output.say(f"{one.name}: on the server and not in the file; `--prune` deletes it")

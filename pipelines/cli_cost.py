"""`biovlm cost`: what a run or a model version cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import MissingInputError
from pipelines import output
from pipelines.cli_options import Json

if TYPE_CHECKING:
    from components.platform.settings import Settings

Subject = Annotated[
    str | None, typer.Argument(help="A run, or models:/NAME@ALIAS; the newest run on this machine.", metavar="RUN|MODEL")
]


def cost(subject: Subject = None, json: Json = False) -> None:
    """Time, GPU time, waiting, energy and bytes moved: of a run by its steps, or of all that made a model version."""
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    (_of_version if subject and subject.startswith("models:") else _of_run)(settings, subject or "", json)


def _of_run(settings: Settings, run: str, json: bool) -> None:
    from components.platform import cost, events
    from pipelines import costs, forecast

    folders = sorted(path.parent for path in (settings.home / "runs").glob("*/events.jsonl"))
    asked = [one for one in folders if one.name == run or not run]
    if not asked:
        raise MissingInputError(
            f"no run {run!r} on this machine" if run else "there was no run on this machine yet",
            f"runs here: {', '.join(one.name for one in folders[-5:]) or 'none'}; a version's cost needs no run: `models:/NAME@champion`",
        )
    folder = asked[-1]
    spent, saved = cost.of_run(events.read(folder / "events.jsonl"))
    error = forecast.compare(forecast.kept(folder), spent)
    whole = {"run": folder.name, "spent": cost.total(spent.values()), "saved": cost.total(saved.values())}
    if json:
        values: dict[str, Any] = {name: one.model_dump() if isinstance(one, cost.Cost) else one for name, one in whole.items()}
        steps = {name: one.model_dump() for name, one in spent.items()}
        output.emit_json({**values, "steps": steps, "forecast": error.model_dump() if error else None})
        return
    for name, found in spent.items():
        output.emit(f"{name}: {costs.words(found)}")
    for label, value in costs.rows(cost.total(spent.values()), cost.total(saved.values()), error):
        output.emit(f"{label}: {value}")


def _of_version(settings: Settings, address: str, json: bool) -> None:
    from components.platform import champion, cost, versions
    from components.platform.store import open_store
    from pipelines import costs

    version = versions.find(settings, address)
    found, unknown = cost.of_version(open_store(settings), version.tag(champion.RECEIPT_KEY))
    if json:
        output.emit_json(
            {"model": version.name, "version": version.version, "cost": found.model_dump(), "steps_unknown": unknown}
        )
        return
    output.emit(f"{version.name} {version.version}: {costs.words(found)}")
    if unknown:
        output.say(f"note: of {unknown} steps behind it nobody measured the cost, or their records are gone")

"""`biovlm registry`: which models there are, and which versions they have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import output
from pipelines.cli_options import SHOWN, Json

if TYPE_CHECKING:
    from components.platform.ledger.entry import Entry
    from components.platform.versions import Version


def list_models(json: Json = False) -> None:
    """All registered models, with the versions that are champion, challenger and previous."""
    from components.platform import versions
    from components.platform.ledger.entry import ALIASES
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    found = {name: versions.history(settings, name) for name in versions.models(settings)}
    holders = {name: {alias: one.version for one in known for alias in one.aliases} for name, known in found.items()}
    if json:
        counts = {name: len(known) for name, known in found.items()}
        output.emit_json(
            [{"name": n, "versions": counts[n], **{alias: holders[n].get(alias, "") for alias in ALIASES}} for n in found]
        )
    elif not found:
        output.say("no model is registered yet; `biovlm run` makes the first one")
    else:
        rows = [(n, str(len(found[n])), *(holders[n].get(alias, "-") for alias in ALIASES)) for n in found]
        output.emit_table(("name", "versions", *ALIASES), rows)


def history(
    name: Annotated[str, typer.Argument(help="A registered model.", metavar="NAME")],
    json: Json = False,
) -> None:
    """All versions of a model, newest first, and every move of its aliases, as the ledger tells it."""
    from components.platform import versions
    from components.platform.ledger import registry
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    found = versions.history(settings, name)
    if not found:
        versions.find(settings, f"models:/{name}@champion")  # says which names there are
    standing = registry.standing(settings, name)
    entries = standing.entries if standing else ()
    if json:
        moves = [entry.model_dump(mode="json") | {"digest": entry.digest} for entry in entries]
        output.emit_json({"versions": [version.model_dump() for version in found], "ledger": moves})
        return
    output.emit_table(("version", "created", "alias", "decision", "recipe", "commit"), [_row(version) for version in found])
    if entries:
        output.emit("")
        columns = ("entry", "time", "act", "version", "moves", "by", "reason")
        output.emit_table(columns, [_act(entry) for entry in entries])


def _row(version: Version) -> tuple[str, ...]:
    return (
        version.version,
        version.created,
        ",".join(version.aliases) or "-",
        version.tags.get("biovlm.decision", "-"),
        version.tags.get("biovlm.recipe", "-"),
        version.tags.get("biovlm.commit", "-")[:SHOWN],
    )


def _act(entry: Entry) -> tuple[str, ...]:
    moves = ",".join(f"{alias}={version or 'none'}" for alias, version in sorted(entry.moves.items()))
    return (str(entry.number), entry.time, entry.kind.value, entry.version, moves or "-", entry.by, entry.reason or "-")

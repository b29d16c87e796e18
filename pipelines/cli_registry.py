"""`biovlm registry`: which models there are, and which versions they have."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import output

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SHOWN = 12
"""Hex digits of a digest that a reader sees."""


def list_models(json: Json = False) -> None:
    """All registered models, with the version that is champion."""
    from components.platform import versions
    from components.platform.champion import ALIAS
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    found = {name: versions.history(settings, name) for name in versions.models(settings)}
    champions = {name: next((v.version for v in known if ALIAS in v.aliases), "") for name, known in found.items()}
    if json:
        output.emit_json([{"name": name, "versions": len(known), ALIAS: champions[name]} for name, known in found.items()])
    elif not found:
        output.say("no model is registered yet; `biovlm run` makes the first one")
    else:
        rows = [(name, str(len(known)), champions[name] or "-") for name, known in found.items()]
        output.emit_table(("name", "versions", ALIAS), rows)


def history(
    name: Annotated[str, typer.Argument(help="A registered model.", metavar="NAME")],
    json: Json = False,
) -> None:
    """All versions of a model, newest first: when, from which recipe and code, and which is champion."""
    from components.platform import versions
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    found = versions.history(settings, name)
    if not found:
        versions.find(settings, f"models:/{name}@champion")  # says which names there are
    if json:
        output.emit_json([version.model_dump() for version in found])
        return
    rows = [
        (
            version.version,
            version.created,
            ",".join(version.aliases) or "-",
            version.tags.get("biovlm.decision", "-"),
            version.tags.get("biovlm.recipe", "-"),
            version.tags.get("biovlm.commit", "-")[:SHOWN],
        )
        for version in found
    ]
    output.emit_table(("version", "created", "alias", "decision", "recipe", "commit"), rows)

"""`biovlm lineage`: what a model version was made from, whether that is still true, and the same for others to read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import RefusedError, UsageError
from pipelines import output
from pipelines.cli_options import Address, Json

if TYPE_CHECKING:
    from components.platform.lineage.graph import Document


class Format(StrEnum):
    """Who shall read an export."""

    JSON = "json"
    """The document itself."""
    OPENLINEAGE = "openlineage"
    """Events of OpenLineage, one JSON object a line."""
    CARD = "card"
    """A model card as Hugging Face reads it."""


def show(
    model: Address,
    json: Json = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the graph drawn.", metavar="FILE")] = None,
) -> None:
    """The tree from a model version down to data, base weights, code, machine and licences."""
    from components.platform.lineage import text

    if json and html:
        raise UsageError("--json and --html are both given", "choose one")
    document = _document(model)
    if html:
        from components.platform.lineage.page import render  # jinja2

        _write(html, render(document))
        output.say(f"page: {html}")
    elif json:
        output.emit_json(document.model_dump(mode="json"))
    else:
        output.emit(text.render(document))


def verify(model: Address, json: Json = False) -> None:
    """Hash everything again that a model version was made from; exit code 77 if a byte is not what it was."""
    from components.platform import versions
    from components.platform.lineage import auditing
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    found = auditing.verify(settings, versions.find(settings, model))
    if json:
        broken = [{"place": place, "problem": problem} for place, problem in found.broken]
        output.emit_json({"model": model, "whole": found.whole, "broken": broken})
    else:
        for line in found.whole:
            output.emit(f"whole: {line}")
        for place, problem in found.broken:
            output.emit(f"broken: {place}: {problem}")
    if found.broken:
        raise RefusedError(
            f"{len(found.broken)} places of the lineage of {model} are broken, {len(found.whole)} are whole",
            "do not serve this version; bring the named files back from a backup, or run its recipe again",
        )


def export(
    model: Address,
    format: Annotated[Format, typer.Option("--format", help="json, openlineage or card.")] = Format.JSON,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; stdout without it.", metavar="FILE")] = None,
) -> None:
    """The lineage for others: JSON, OpenLineage events, or a model card in Hugging Face's format."""
    document = _document(model)
    if format is Format.JSON:
        content = document.to_bytes().decode()
    elif format is Format.OPENLINEAGE:
        from components.platform.lineage import openlineage

        content = openlineage.lines(document)
    else:
        content = _card(document)
    if out:
        _write(out, content if content.endswith("\n") else f"{content}\n")
        output.say(f"{format}: {out}")
    else:
        output.emit(content.rstrip("\n"))


def _document(model: str) -> Document:
    from components.platform import versions
    from components.platform.lineage import auditing
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    return auditing.read(settings, versions.find(settings, model))


def _card(document: Document) -> str:
    from components.platform.lineage import auditing, card
    from components.platform.settings import Settings

    return card.render(document, auditing.report_of(Settings.from_environment(), document))


def _write(path: Path, content: str) -> None:
    from model.manifest import cannot_write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error

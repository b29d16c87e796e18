"""`biovlm doctor` and `biovlm schema`: the machine, and the form of a recipe."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer

from pipelines import output

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def doctor(json: Json = False) -> None:
    """Say what this machine has and lacks; exit code 66 if a run cannot work here."""
    from model.errors import MissingInputError
    from pipelines.doctor import Level, examine

    findings = examine()
    if json:
        output.emit_json([finding.model_dump() for finding in findings])
    else:
        for finding in findings:
            output.emit(f"{finding.level:<7}  {finding.name:<14}  {finding.found}")
            if finding.hint:
                output.emit(f"{'':<7}  {'':<14}  hint: {finding.hint}")
    missing = [finding.name for finding in findings if finding.level is Level.MISSING]
    if missing:
        raise MissingInputError(f"a run cannot work here yet: {', '.join(missing)}", "each line above says the way out")


def schema() -> None:
    """Write the JSON Schema of recipes, for editors, to pipelines/recipes/schema.json."""
    from model import recipe as recipes
    from model.manifest import cannot_write
    from pipelines.choice import RECIPES

    path = RECIPES / "schema.json"
    try:
        path.write_text(json_text.dumps(recipes.json_schema(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    output.emit(str(path))

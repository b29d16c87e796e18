"""`biovlm doctor` and `biovlm schema`: the machine, and the form of a recipe."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import output
from pipelines.cli_options import DEFAULT, Json, RecipeName

if TYPE_CHECKING:
    from pipelines.doctor import Finding


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="The cluster instead, for a recipe.")] = False,
    recipe: RecipeName = DEFAULT,
    budget: Annotated[
        float | None, typer.Option("--budget", help="With --cluster: what a run may cost.", metavar="GPU_HOURS")
    ] = None,
    json: Json = False,
) -> None:
    """Say what this machine, or a cluster, has and lacks; exit code 66 if a run cannot work there."""
    from model.errors import MissingInputError
    from pipelines.doctor import Level, examine

    findings = _of_cluster(recipe, budget) if cluster else examine()
    if json:
        output.emit_json([finding.model_dump() for finding in findings])
    else:
        for finding in findings:
            output.emit(f"{finding.level:<7}  {finding.name:<14}  {finding.found}")
            if finding.hint:
                output.emit(f"{'':<7}  {'':<14}  hint: {finding.hint}")
    missing = [finding.name for finding in findings if finding.level is Level.MISSING]
    if missing:
        raise MissingInputError(
            f"a run cannot work {'there' if cluster else 'here'} yet: {', '.join(missing)}", "each line above says the way out"
        )


def _of_cluster(recipe: str, budget: float | None) -> list[Finding]:
    from components.platform.addresses import Addresses
    from components.platform.settings import Settings
    from pipelines import doctor_cluster
    from pipelines.choice import chosen

    wanted = chosen(recipe, None, ())
    ground = doctor_cluster.Ground(Settings.from_environment(), Addresses.from_environment(), wanted, budget)
    return doctor_cluster.examine(ground)


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

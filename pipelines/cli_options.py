"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Name of a recipe, or path of a YAML file.", metavar="RECIPE")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: stages.task.epochs=2; may be repeated.", metavar="A.B=VALUE")
]
Data = Annotated[str | None, typer.Option("--data", help="Task stage and evaluation on this data set.", metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Address = Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/NUMBER.", metavar="MODEL")]
DEFAULT = "tiny"
"""The recipe where none is named."""
SHOWN = 12
"""Hex digits of a digest that a reader sees."""

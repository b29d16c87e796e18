"""The KFP door of preflight."""

from typing import NamedTuple

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def preflight(recipe: str, champion: dsl.Output[dsl.Model]) -> NamedTuple(  # type: ignore[valid-type]
    "Slices",
    [
        ("data", str),
        ("align", str),
        ("instruct", str),
        ("task", str),
        ("evaluate", str),
        ("register", str),
        ("promote", str),
        ("tracking", str),
    ],
):
    """Check what can fail later; hand out the slices of the recipe and the present champion."""
    from components.preflight.step import run

    return run(recipe, champion.path)

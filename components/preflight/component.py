"""The KFP door of preflight."""

from typing import NamedTuple

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def preflight(recipe: str, budget: str, policy: str, trigger: str, champion: dsl.Output[dsl.Model]) -> NamedTuple(  # type: ignore[valid-type]
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
        ("question", str),
        ("cpu", str),
        ("memory", str),
        ("accelerator", str),
        ("gpus", str),
        ("node_selector", dict),
        ("tolerations", list),
    ],
):
    """Check what can fail later; hand out the slices of the recipe, what a worker asks for, and the present champion."""
    from components.platform.door import enter
    from components.preflight.step import run

    enter(trigger)
    return run(recipe, champion.path, budget, policy)

"""The KFP door of evaluation: of the candidate, and of the champion."""

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def evaluate(
    who: str, piece: str, data: dsl.Input[dsl.Dataset], checkpoint: dsl.Input[dsl.Model], report: dsl.Output[dsl.Artifact]
) -> None:
    """Ask a checkpoint the questions of the benchmarks. `who` names the step and does not change the result."""
    from components.evaluate.step import run

    run(who, piece, data.path, checkpoint.path, report.path)

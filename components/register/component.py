"""The KFP door of registration."""

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def register(
    piece: str,
    tracking: str,
    trigger: str,
    data: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    report: dsl.Input[dsl.Artifact],
    receipt: dsl.Output[dsl.Artifact],
) -> None:
    """Export the checkpoint and make it a version of the registered model."""
    from components.platform.door import enter
    from components.register.step import run

    enter(trigger)
    run(piece, tracking, data.path, checkpoint.path, report.path, receipt.path)

"""The KFP door of training: one component for all three stages."""

from typing import Optional

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def train(
    piece: str,
    data: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    parent: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads the annotation)
) -> None:
    """Train one stage, from the parent's checkpoint if there is one."""
    from components.train.step import run

    run(piece, data.path, parent and parent.path, checkpoint.path)

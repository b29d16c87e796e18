"""The KFP door of training: one component for all three stages."""

from typing import Optional

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"
PASSED_ON = [
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_AFFINITY,
    dsl.TaskConfigField.KUBERNETES_VOLUMES,
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
]
"""What goes to the Ray workers; only the environment also to this pod."""


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False, task_config_passthroughs=PASSED_ON)
def train(
    piece: str,
    data: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    trigger: str,
    task_config: dsl.TaskConfig,
    parent: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads the annotation)
) -> None:
    """Train one stage, from the parent's checkpoint if there is one."""
    from components.platform.door import enter
    from components.train.step import run

    enter(trigger, task_config)
    run(piece, data.path, parent and parent.path, checkpoint.path)

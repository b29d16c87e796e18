"""The KFP door of evaluation: of the candidate, and of the champion."""

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
def evaluate(
    who: str,
    piece: str,
    data: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    trigger: str,
    task_config: dsl.TaskConfig,
) -> None:
    """Ask a checkpoint the questions of the benchmarks. `who` names the step and does not change the result."""
    from components.evaluate.step import run
    from components.platform.door import enter

    enter(trigger, task_config)
    run(who, piece, data.path, checkpoint.path, report.path)

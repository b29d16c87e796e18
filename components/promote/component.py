"""The KFP door of promotion."""

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def promote(
    piece: str,
    tracking: str,
    trigger: str,
    receipt: dsl.Input[dsl.Artifact],
    report: dsl.Input[dsl.Artifact],
    champion: dsl.Input[dsl.Model],
    champion_report: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
) -> None:
    """Decide whether the version becomes the champion, and move the alias if it does."""
    from components.platform.door import enter
    from components.promote.step import run

    enter(trigger)
    run(piece, tracking, receipt.path, report.path, champion.path, champion_report.path, decision.path)

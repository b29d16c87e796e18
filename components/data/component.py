"""The KFP door of the data step."""

from kfp import dsl

LAUNCHER_IMAGE = "biovlm-launcher-python"


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def data(piece: str, question: str, trigger: str, data: dsl.Output[dsl.Dataset]) -> None:
    """Lay one revision of data sets and base models into the store, verified and audited; or skip a scheduled run."""
    from components.data.step import run
    from components.platform.door import enter

    enter(trigger)
    run(piece, data.path, question)

"""The pipeline: data, three stages of training, evaluation beside the champion, registration, promotion.

Order follows from who needs what: every edge is an artifact, a small JSON reference (components/platform/reference.py). KFP's own
cache is off everywhere: its key does not see what is inside an input, or which code a component imports. Each step looks for its
result in the store under a key that does (components/platform/step.py).

What the pods of the steps need on a cluster stands in `pods.py`; a run on this machine does not see it.
"""

# No `from __future__ import annotations`: KFP reads the annotations themselves.
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from components.data.component import data
from components.evaluate.component import evaluate
from components.platform.task_config import Asks
from components.preflight.component import preflight
from components.promote.component import promote
from components.register.component import register
from components.train.component import train
from model.manifest import cannot_write
from pipelines.pods import Images, dress
from pipelines.summary import STEPS

NAME = "biovlm"
COMPILED = Path(__file__).parent / "compiled" / "biovlm.yaml"


def pipeline(images: Images = Images()) -> Any:
    """The pipeline, with the images that its steps run in."""

    @dsl.pipeline(name=NAME, description="Train an assistant in three stages, evaluate it, promote it if it is better.")
    def biovlm(recipe: str, budget: str = "", policy: str = "", trigger: str = "kubeflow") -> None:
        """One run of one recipe.

        Args:
            recipe: A complete recipe (model.config.Recipe) as JSON.
            budget: GPU hours that the run may cost, as a number; empty for no bound.
            policy: When to train again, and why, as JSON, for a run that a schedule starts; empty trains in any case.
            trigger: Who or what began the run, as lineage shows it: `person:NAME`, `schedule:NAME`, `ci:NAME`; by itself, somebody on
                Kubeflow's own pages. On this machine empty: the environment says it.
        """
        _graph(recipe, budget, policy, trigger, images)

    return biovlm


def _graph(recipe: str, budget: str, policy: str, trigger: str, images: Images) -> None:
    start = preflight(recipe=recipe, budget=budget, policy=policy, trigger=trigger)
    champion, tracking, questions = (start.outputs[name] for name in ("champion", "tracking", "evaluate"))

    material = data(piece=start.outputs["data"], question=start.outputs["question"], trigger=trigger)
    align = train(piece=start.outputs["align"], data=material.output, trigger=trigger)
    instruct = train(piece=start.outputs["instruct"], data=material.output, parent=align.output, trigger=trigger)
    task = train(piece=start.outputs["task"], data=material.output, parent=instruct.output, trigger=trigger)

    report = evaluate(who="evaluate", piece=questions, data=material.output, checkpoint=task.output, trigger=trigger)
    rival = evaluate(who="champion", piece=questions, data=material.output, checkpoint=champion, trigger=trigger)

    receipt = register(
        piece=start.outputs["register"],
        tracking=tracking,
        trigger=trigger,
        data=material.output,
        checkpoint=task.output,
        report=report.output,
    )
    decision = promote(
        piece=start.outputs["promote"],
        tracking=tracking,
        trigger=trigger,
        receipt=receipt.output,
        report=report.output,
        champion=champion,
        champion_report=rival.output,
    )

    asks = {name: start.outputs[name] for name in Asks._fields}
    tasks = (start, material, align, instruct, task, report, rival, receipt, decision)
    for name, step in zip(STEPS, tasks, strict=True):
        step.set_display_name(name).set_caching_options(False)
        dress(name, step, images, asks)


def compile_to(path: Path, images: Images = Images()) -> None:
    """Write the compiled pipeline, every task with KFP's cache off. CannotWriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # kfp looks through the whole call stack for each setting of a task. A thread has a short one.
        with ThreadPoolExecutor(1) as alone:
            alone.submit(lambda: compiler.Compiler().compile(pipeline(images), str(path))).result()
    except OSError as error:
        raise cannot_write(path, error) from error

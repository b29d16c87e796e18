"""Evaluation of one checkpoint: the candidate's, and by the same step the champion's.

1. What is asked, and who is asked, is the key; who the checkpoint is for the run is not. So the champion's report is the one it
   got as a candidate, as long as the questions are the same.
2. Where there is no champion, the report is `none`.
3. The checkpoint is put on the base models that it was trained on, which its own record names: the data of this run may bring
   newer ones.
4. Which images it learned from is said by the data artifact that it was trained with: those of every set, not of the asked one alone.
5. `model.evaluation` asks every question twice, with and without the image, and writes the report artifact (`asking`): one worker in
   this process, several, or one in a cluster, through the launcher. The report is the same.
6. This step signs the report (components/platform/signing.py): no worker has the key, and promotion reads signed reports alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from components.platform import inputs, launcher, reference, signing
from components.platform.events import EventType
from components.platform.heavy import Result
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.step import Work, guarded, run_step
from components.platform.task import fetched, local_job
from model import manifest
from model.config import EvaluateSlice

WORKER = "components.evaluate.worker.evaluate"


def run(who: str, piece: str, data: str, checkpoint: str, report: str) -> None:
    """Make or reuse the report of a checkpoint, and write its reference to the path `report`.

    Args:
        who: Name of the step: `evaluate` for the candidate, `champion`.
        piece: The slice, as JSON.
        data: Path of the data reference.
        checkpoint: Path of the checkpoint's reference, of kind `none` where there is no champion.
        report: Where the reference goes.
    """
    content = json.loads(piece)
    subject = reference.read(checkpoint, Settings.from_environment().store)
    if subject.is_none and not subject.skipped:
        _nobody(who, report)
        return
    wanted = EvaluateSlice.model_validate(content)
    given = {"data": data, "checkpoint": checkpoint}
    signed = partial(signing.was_signed, Settings.from_environment())
    run_step("evaluate", who, content, given, report, _produce, partial(identity, wanted), signed, heavy=True)


def identity(wanted: EvaluateSlice, given: Mapping[str, Reference]) -> dict[str, str]:
    """What of the inputs belongs to the key: the data sets that are asked, without what the audit set aside, and the
    checkpoint."""
    return inputs.identity(given["data"], _names(wanted)) | {"checkpoint": given["checkpoint"].digest}


def _nobody(who: str, report: str) -> None:
    settings = Settings.from_environment()
    with guarded(who, settings) as log:
        Reference(kind=reference.NONE).write(Path(report), settings.store)
        log.write(EventType.REUSED, message="there is no champion yet", seconds=0.0)


def _produce(work: Work) -> Result | None:
    there = _asked(work)
    signing.ensure(work.store, work.settings, work.store.uri(work.final))
    return there


def _asked(work: Work) -> Result | None:
    """Have the report made at `work.final`."""
    wanted, subject = EvaluateSlice.model_validate(work.piece), work.inputs["checkpoint"]
    data, own, alone = work.inputs["data"], _own_data(work), wanted.resources.workers == 1
    artifacts = {
        "sets": inputs.sources(data, _names(wanted))["sets"],
        "bases": inputs.sources(own)["bases"],
        "subjects": {"checkpoint": work.source(subject), "data": work.source(own)},
    }
    job = {
        "piece": dict(work.piece),
        "audit": inputs.audit(data, _names(wanted)),
        "who": work.name,
        "digest": subject.digest,
        "export": work.settings.launcher != "process",
    }
    task = work.task(WORKER, job, artifacts, wanted.resources)
    if alone and work.settings.launcher == "process":
        from components.evaluate.asking import ask  # torch

        ask(local_job(task, fetched(task, work.store), launcher.here(work), work.settings))
        return None
    there = launcher.run(task, work)
    work.store.fetch(work.store.uri(work.final))  # small, and promotion and the page read it
    return there


def _own_data(work: Work) -> Reference:
    """The data artifact that the checkpoint was trained with; this run's, if its record is gone."""
    store = work.store
    record = store.record("train", work.inputs["checkpoint"].folder.name)
    if record is None or "data" not in record.inputs:
        return work.inputs["data"]
    folder = store.fetch(record.inputs["data"].uri, record.inputs["data"].digest)
    return Reference.to(folder, manifest.read(folder))


def _names(wanted: EvaluateSlice) -> set[str]:
    return {benchmark.set for benchmark in wanted.evaluation.benchmarks}

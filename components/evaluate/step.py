"""Evaluation of one checkpoint: the candidate's, and by the same step the champion's.

1. What is asked, and who is asked, is the key; who the checkpoint is for the run is not. So the champion's report is the one it
   got as a candidate, as long as the questions are the same.
2. Where there is no champion, the report is `none`.
3. The checkpoint is put on the base models that it was trained on, which its own record names: the data of this run may bring
   newer ones.
4. `model.evaluation` asks every question twice, with and without the image, and writes the report artifact.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from components.platform import exports, inputs, reference
from components.platform.events import EventType
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.step import Work, guarded, run_step
from model import manifest
from model.config import EvaluateSlice

PROGRESS_SECONDS = 1.0


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
    if reference.read(checkpoint, Settings.from_environment().store).is_none:
        _nobody(who, report)
        return
    wanted = EvaluateSlice.model_validate(content)
    given = {"data": data, "checkpoint": checkpoint}
    run_step("evaluate", who, content, given, report, _produce, partial(identity, wanted))


def identity(wanted: EvaluateSlice, given: Mapping[str, Reference]) -> dict[str, str]:
    """What of the inputs belongs to the key: the data sets that are asked, without what the audit set aside, and the
    checkpoint."""
    return inputs.identity(given["data"], _names(wanted)) | {"checkpoint": given["checkpoint"].digest}


def _nobody(who: str, report: str) -> None:
    settings = Settings.from_environment()
    with guarded(who, settings) as log:
        Reference(kind=reference.NONE).write(Path(report), settings.store)
        log.write(EventType.REUSED, message="there is no champion yet", seconds=0.0)


def _produce(work: Work) -> None:
    import torch

    from model.architecture import checkpoint as checkpoints
    from model.architecture.features import Disk
    from model.data.dataset import Audit
    from model.evaluation import vllm_engine
    from model.evaluation.evaluate import evaluate

    wanted, store = EvaluateSlice.model_validate(work.piece), work.store
    asked = inputs.verified(work.inputs["data"], store, _names(wanted))["sets"]
    subject = work.inputs["checkpoint"]
    bases = inputs.verified(_own_data(work), store)["bases"]
    # As many threads as a training worker has: its features are then to the bit those of the training, and found in its cache.
    torch.set_num_threads(max(1, int(wanted.resources.cpus_per_worker)))
    last = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            work.log.write(EventType.PROGRESS, done=done, total=total, unit=unit)

    assistant = checkpoints.load(subject.folder, bases, merge=True)
    audit = Audit(**inputs.audit(work.inputs["data"], _names(wanted)))
    cache = Disk(work.settings.feature_cache, work.settings.feature_cache_bytes)
    # Candidate and champion alike: what two engines answer could not be compared.
    exported = exports.ensure(subject, lambda: bases, store) if vllm_engine.usable(wanted.resources) else None
    evaluate(
        wanted,
        assistant,
        subject.digest,
        asked,
        work.final,
        progress=progress,
        verify=False,
        audit=audit,
        export=exported,
        feature_cache=cache,
    )


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

"""Ask a checkpoint all questions: what each worker of an evaluation does, or the step itself where there is one worker.

1. The checkpoint is loaded on its own base models, with all adapters merged.
2. Where vLLM answers, the export that it serves is made, or found in the store; also where the step runs in a cluster, for
   registration.
3. `model.evaluation.evaluate` asks, tells progress to the event log, and writes the report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from components.platform import exports, inputs
from components.platform.events import EventLog, EventType
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.store import open_store
from model.architecture import checkpoint as checkpoints
from model.architecture.features import Disk
from model.config import EvaluateSlice
from model.data.dataset import Audit
from model.errors import PreemptedError
from model.evaluation import vllm_engine
from model.evaluation.evaluate import evaluate
from model.evaluation.sharing import Shard

PROGRESS_SECONDS = 1.0


def ask(job: Mapping[str, Any], shard: Shard | None = None, asked: Callable[[], bool] | None = None) -> None:
    """Ask, and commit the report at `job["final"]`.

    Args:
        job: A local job (components/platform/task.py) with `piece`, `audit`, `who` (the step), the checkpoint's `digest`, and
            whether to `export` it.
        shard: This worker, if there are several.
        asked: Whether it shall stop; nothing is kept then.

    Raises:
        PreemptedError: It was stopped. Others as `model.evaluation.evaluate`.
    """
    wanted, shard = EvaluateSlice.model_validate(job["piece"]), shard or Shard()
    # As many threads as a training worker has: its features are then to the bit those of the training, and found in its cache.
    torch.set_num_threads(max(1, int(wanted.resources.cpus_per_worker)))
    bases = {name: Path(folder) for name, folder in job["bases"].items()}
    subject = Path(job["subjects"]["checkpoint"])
    evaluate(
        wanted,
        checkpoints.load(subject, bases, merge=True),
        job["digest"],
        {name: Path(folder) for name, folder in job["sets"].items()},
        Path(job["final"]),
        training_images=inputs.learned_images(Path(job["subjects"]["data"])),
        progress=_progress(job, shard, asked),
        verify=False,
        audit=Audit(**job["audit"]),
        export=_export(wanted, job, subject, bases, shard.leads),
        feature_cache=Disk(Path(job["feature_cache"]["folder"]), job["feature_cache"]["limit_bytes"]),
        shard=shard,
    )


def _export(wanted: EvaluateSlice, job: Mapping[str, Any], subject: Path, bases: Mapping[str, Path], leads: bool) -> Path | None:
    """The export for vLLM, made if need be; None if the assistant itself answers.

    Candidate and champion alike: what two engines answer could not be compared. With `export` in the job it is made in any case, by
    one worker: the machine that registers the checkpoint may have no torch.
    """
    store = open_store(Settings.from_environment({"BIOVLM_HOME": job["home"], "BIOVLM_STORE": job["shared_store"]}))
    checkpoint = Reference(kind="checkpoint", uri=str(subject), digest=job["digest"])
    if vllm_engine.usable(wanted.resources):
        return exports.ensure(checkpoint, lambda: bases, store)
    if job["export"] and leads and not exports.is_there(checkpoint, store):
        exports.ensure(checkpoint, lambda: bases, store)
    return None


def _progress(job: Mapping[str, Any], shard: Shard, asked: Callable[[], bool] | None) -> Callable[[int, int, str], None]:
    log, last = EventLog(Path(job["events"]), job["who"], job["attempt"]), 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        if asked is not None and asked():
            raise PreemptedError("the evaluation was stopped", "the same command asks again from the first question")
        if shard.leads and (done == total or time.monotonic() - last > PROGRESS_SECONDS):
            last = time.monotonic()
            log.write(EventType.PROGRESS, done=done, total=total, unit=unit)

    return progress

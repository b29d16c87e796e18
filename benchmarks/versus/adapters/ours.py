"""biovlm as a product: `run_stage` with checkpoint store, reporter and all checks, as `python -m model.training` would run it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.versus import models
from benchmarks.versus.adapters.job import TARGETS, Job, Stamps, dump, read_job, run_training, write_result
from model.architecture.assembly import build
from model.architecture.features import Disk
from model.architecture.kernels import attention, products, thin
from model.architecture.kernels.tile import COLUMNS
from model.config import TrainSlice
from model.data.loading import Prompter, examples, open_dataset
from model.training.reporter import LineReporter
from model.training.stage import StageInputs, run_stage

SET = "bench"
CACHE_BYTES = 2**34


def piece(job: Job) -> TrainSlice:
    """The slice of a recipe."""
    stage: dict[str, Any] = {
        "data": [{"set": SET}],
        "trainable": ["connector", "language_lora"],
        "learning_rates": {"connector": job.rate, "language_lora": job.rate},
        "warmup": 0.0,
        "batch_tokens": job.batch_tokens,
        "packing": job.packing,
        "epochs": job.epochs,
        "memory": "keep" if job.tuned else "auto",
        "lora": {"rank": job.rank, "alpha": job.alpha, "targets": TARGETS},
        **{name: json.loads(value) for name, value in (job.options or {}).items()},
    }
    if job.packing != "none":
        stage |= {"batch_tokens": job.row_tokens, "micro_batch_tokens": job.row_tokens}
    if job.passes:
        stage["micro_batch_tokens"] = job.batch_tokens * job.passes // job.batch
    whole = {
        "stage_name": "instruct",
        "seed": models.SEED,
        "model": models.settings(),
        "stage": stage,
        "resources": {"cpus_per_worker": job.threads},
    }
    return TrainSlice.model_validate(whole)


def stage_inputs(job: Job) -> StageInputs:
    """Artifacts, and the feature cache if the job names one."""
    disk = Disk(Path(job.cache), CACHE_BYTES) if job.cache else None
    bases = {name: Path(folder) for name, folder in (job.bases or {}).items()}
    return StageInputs({SET: Path(job.dataset)}, bases, feature_cache=disk)


class Stamping(LineReporter):
    """Takes a stamp at the end of every step."""

    def __init__(self, path: Path, stamps: Stamps) -> None:
        super().__init__(path)
        self._stamps, self._done = stamps, 0

    def metrics(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._done += int(values["examples"])
        self._stamps.take(self._done)
        super().metrics(step, total, values)


def count_kernels(stamps: Stamps) -> None:
    """Add what our kernels compute, as torch counts its own: of attention whole squares, two products forward and five backward."""

    def counted(kernel: Any, flops: Callable[..., int]) -> Any:
        def run(first: int, last: int, *given: Any) -> None:
            stamps.unseen += flops(first, last, *given)
            kernel(first, last, *given)

        return run

    def of_attention(products: int, first: int, last: int, asking: Any, keys: Any, _: Any, cos: Any, *more: Any) -> int:
        width, documents = cos.shape[1], more[1]
        heads, total = keys.shape[1] // width, 0
        for work in range(first, last):
            _, trunk, length = (int(each) for each in documents[work // heads])
            total += 2 * products * (trunk * trunk + (length - trunk) * length) * width * (asking.shape[1] // keys.shape[1])
        return total

    def of_adapter(first: int, last: int, _: Any, x: Any, grad: Any, down: Any, *__: Any) -> int:
        tokens = min(len(x), last * thin.CHUNK) - first * thin.CHUNK
        return 2 * 2 * tokens * (x.shape[1] + grad.shape[1]) * down.shape[1]

    def of_product(first: int, last: int, x: Any, panels: Any, *_: Any) -> int:
        tokens = min(len(x), last * products.BLOCK) - first * products.BLOCK
        return 2 * tokens * panels.size

    def of_panels(first: int, last: int, weight: Any, _: Any, left: Any, *__: Any) -> int:
        return 2 * (last - first) * COLUMNS * left.size

    attention.attend = counted(attention.attend, functools.partial(of_attention, 2))
    attention.attend_back = counted(attention.attend_back, functools.partial(of_attention, 5))
    thin.adapt_back = counted(thin.adapt_back, of_adapter)
    products.multiply, products.lay = counted(products.multiply, of_product), counted(products.lay, of_panels)


def main() -> None:
    """Do the job."""
    job = read_job()
    whole, inputs = piece(job), stage_inputs(job)
    if job.mode == "dump":
        assistant = build(whole.model, inputs.bases, whole.seed)
        prompter = Prompter(assistant.tokenizer, whole.model.template, whole.model.system, assistant.image_tokens)
        learned = examples(whole.stage.data, {SET: open_dataset(inputs.sets[SET])}, prompter, whole.model.context_tokens)
        dump(job, (e.record_id for e in learned), ((e.input_ids, e.labels) for e in learned))
        return
    stamps = Stamps()
    if job.mode == "flops":
        count_kernels(stamps)
    reporter = Stamping(job.folder / "metrics.jsonl", stamps)
    run_training(job, stamps, lambda: run_stage(whole, inputs, job.folder / "work", job.folder / "checkpoint", reporter))
    write_result(job, stamps=stamps.taken)


if __name__ == "__main__":
    main()

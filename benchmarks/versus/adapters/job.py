"""What all adapters share: the job, the dump of token ids, stamps at steps, the audit of a packed batch. Runs in every environment.

A job is a JSON file, written by `benchmarks.versus.runs`; the adapter writes `result.json` and, asked to, `dump.jsonl` into its folder.
A *stamp* is taken at a boundary between two steps: documents done, processor seconds of the process, wall seconds, executed FLOPs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGNORE = -100
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGET_PATTERN = rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(TARGETS)})"
CONNECTOR = "multi_modal_projector"


@dataclass(frozen=True)
class Job:
    """What to do, in one environment."""

    mode: str
    """`dump` token ids, `train` (`warm` where it only fills a cache), `flops` (train and count them), or `audit` the first batch."""
    llava: str
    """Folder of the assembled model."""
    documents: str
    """JSON lines: id, image (path), question, answer."""
    out: str
    """Folder of this run."""
    tuned: bool
    packing: str
    """`none`, or what the framework calls its packing."""
    row_tokens: int
    batch: int
    epochs: float
    batch_tokens: int
    rate: float
    rank: int
    alpha: int
    threads: int
    dataset: str = ""
    """For ours: folder of the same documents as a data set."""
    bases: Mapping[str, str] | None = None
    """For ours: the base models that the LLaVA folder was assembled from."""
    options: Mapping[str, str] | None = None
    """For ours: further fields of the stage."""
    cache: str = ""
    """For ours: folder of the feature cache; empty for none."""
    passes: int = 0
    """Documents of one forward pass, where a step takes several; 0 for all of a step's in one."""
    most_steps: int = 0
    """For the peers: end after so many passes; 0 for none."""

    @property
    def folder(self) -> Path:
        """`out` as a path."""
        return Path(self.out)


def read_job() -> Job:
    """The job named on the command line; the number of threads is set."""
    import torch

    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    return job


def read_documents(job: Job) -> list[dict[str, str]]:
    """All documents of the job."""
    return [json.loads(line) for line in Path(job.documents).read_text().splitlines()]


def dump(job: Job, ids: Iterable[str], rows: Iterable[tuple[Iterable[int], Iterable[int]]]) -> None:
    """Write input_ids and labels of every document, as the framework will feed them."""
    with (job.folder / "dump.jsonl").open("w") as stream:
        for name, (tokens, labels) in zip(ids, rows, strict=True):
            row = {"id": name, "input_ids": [int(t) for t in tokens], "labels": [int(t) for t in labels]}
            stream.write(json.dumps(row) + "\n")


def write_result(job: Job, **values: Any) -> None:
    """Write the result of this run, with the largest resident set of this process (a child's `ru_maxrss` would begin at its parent's)."""
    (job.folder / "result.json").write_text(json.dumps({**values, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


class Stamps:
    """Costs at the boundaries between steps."""

    def __init__(self) -> None:
        self.taken: list[dict[str, float]] = []
        self.counter: Any = None
        """torch's FLOP counter, where FLOPs are asked for."""
        self.unseen = 0.0
        """FLOPs that it cannot see."""

    def take(self, documents: int) -> None:
        """One, with how many documents have been learned from so far. FLOPs are counted from the first one on."""
        if self.counter and not self.taken:
            self.counter.__enter__()
        flops = self.counter.get_total_flops() + self.unseen if self.counter else 0.0
        cost = {"cpu_seconds": time.process_time(), "wall_seconds": time.perf_counter(), "flops": flops}
        self.taken.append({"documents": documents, **cost})


def run_training(job: Job, stamps: Stamps, train: Callable[[], Any]) -> None:
    """Train, or train and count; FLOPs of attention are those of whole squares, as torch counts them, in all frameworks alike."""
    if job.mode != "flops":
        train()
        return
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    stamps.counter = FlopCounterMode(
        display=False, custom_mapping=mapping
    )  # entered at the first stamp, and left with the process
    train()


def stamp_steps(job: Job, trainable: Callable[[Any], int]) -> Stamps:
    """From now on transformers' Trainer takes a stamp before every step, and the process ends after `most_steps` of them.

    Args:
        job: What is being done.
        trainable: Of a model, the number of weights that learn.
    """
    import transformers

    stamps, step, done = Stamps(), transformers.Trainer.training_step, 0

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        nonlocal done
        stamps.take(done)
        if job.most_steps and len(stamps.taken) > job.most_steps:
            write_result(job, trainable=trainable(model), stamps=stamps.taken)
            raise SystemExit(0)
        done += documents_in(inputs)
        return step(self, model, inputs, *rest, **more)

    transformers.Trainer.training_step = training_step
    return stamps


def documents_in(inputs: Mapping[str, Any]) -> int:
    """Documents of a batch: its rows, or those that stand in its one packed row."""
    rows = int(inputs["input_ids"].shape[0])
    return len(_starts(inputs)) if rows == 1 else rows


def trainable_weights(model: Any) -> int:
    """Number of weights that learn."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def audit_first_batch(job: Job) -> None:
    """From now on the first training step of transformers' Trainer is looked at instead of made; ends the process."""
    import transformers

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        write_result(job, **audit(model, self._prepare_inputs(inputs)))
        raise SystemExit(0)

    transformers.Trainer.training_step = training_step


def audit(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """How far documents of one row see each other, and what share of the loss lies on text.

    Documents are told by where position ids begin anew. The loss of the second document is taken back to the input embeddings: of the
    first one it must not reach any.
    """
    import torch

    model.eval()
    seen: list[Any] = []

    def keep(module: Any, given: Any, output: Any) -> Any:
        output = output.detach().requires_grad_()
        seen.append(output)
        return output

    ids, labels = inputs["input_ids"], inputs["labels"]
    image_id = model.config.image_token_id if hasattr(model.config, "image_token_id") else model.config.image_token_index
    handle = model.get_input_embeddings().register_forward_hook(keep)
    # Whether there is a cache is left to the framework: with one, transformers takes a packed row for one document.
    names = ("input_ids", "attention_mask", "position_ids", "pixel_values", "use_cache")
    logits = model(**{name: inputs[name] for name in names if inputs.get(name) is not None}).logits
    handle.remove()
    counted = labels[..., 1:] != IGNORE
    found: dict[str, Any] = {
        "rows": int(ids.shape[0]),
        "row_tokens": int(ids.shape[1]),
        "loss_tokens": int(counted.sum()),
        "loss_on_image": int(((labels[..., 1:] == image_id) & counted).sum()),
    }
    starts = _starts(inputs)
    found["documents_in_first_row"] = len(starts)
    if len(starts) > 1:
        first, second, end = 0, starts[1], (*starts, ids.shape[1])[2]
        picked = counted[0, second : end - 1]
        scores = torch.log_softmax(logits[0, second : end - 1][picked].float(), -1)
        scores.gather(1, labels[0, second + 1 : end][picked][:, None]).sum().backward()
        gradient = seen[0].grad[0]
        found["gradient_on_other"] = float(gradient[first:second].abs().max())
        found["gradient_on_own"] = float(gradient[second:end].abs().max())
    return found


def _starts(inputs: Mapping[str, Any]) -> list[int]:
    """Where documents of the first row begin, by position ids or by a mask that numbers documents."""
    positions = inputs.get("position_ids")
    if positions is not None:
        first = positions.reshape(-1, positions.shape[-1])[0] == 0
        first[:-1] &= ~first[1:]  # padding is all zeros
        return [int(i) for i in first[:-1].nonzero()[:, 0]]
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 4:  # additive or boolean, block by block: a row that sees nothing before itself
        allowed = (mask[0, 0] == 0) if mask.dtype.is_floating_point else mask[0, 0].bool()
        alone = [not bool(allowed[i, :i].any()) for i in range(allowed.shape[0])]
        # Padding sees nothing, or itself: documents of one token.
        return [i for i, starts in enumerate(alone[:-1]) if starts and not alone[i + 1]]
    return [0]

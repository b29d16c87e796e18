"""g2, g4 and shared: which steps are measured against which; TRL where it is installed."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.onegpu.shapes import Row, Sizes, flex_mask, pack
from benchmarks.onegpu.steps import checkpointed, compiled, make_model, our_step, rates, their_step, train_step, use_flex, work


def g2(sizes: Sizes) -> dict[str, Any]:
    """A LoRA step of an 8B shape."""
    found: dict[str, Any] = {}
    model = make_model(sizes.big_tower, sizes.big, sizes)
    net = model.base_model.model
    padded = work(net, sizes, None, sizes.padded, sizes.text, sizes.supervised)
    found["transformers_no_checkpointing"] = rates(train_step(model, lambda: their_step(model, padded), sizes), model, padded)
    with checkpointed(model):
        found["transformers_checkpointing"] = rates(train_step(model, lambda: their_step(model, padded), sizes), model, padded)
    use_flex(net, sizes)
    compiled(net, sizes)
    for length in sizes.step_rows:
        each = padded.documents[0]
        row = pack(iter([each] * (length // each) + [length]), length)
        data = work(net, sizes, row, 0, sizes.text, sizes.supervised)
        mask = flex_mask(row, sizes)
        found[f"ours_{length}"] = rates(train_step(model, partial(our_step, model, data, sizes, mask), sizes), model, data)
    found["trl"] = trl_steps(sizes)
    return found


def g4(sizes: Sizes) -> dict[str, Any]:
    """What a frozen tower costs beside a small language model."""
    model = make_model(sizes.small_tower, sizes.small, sizes, siglip=True)
    net = model.base_model.model
    data = work(net, sizes, None, sizes.padded, sizes.text, sizes.supervised)
    found: dict[str, Any] = {"gc_off": rates(train_step(model, lambda: their_step(model, data), sizes), model, data)}
    with checkpointed(model):
        found["default"] = rates(train_step(model, lambda: their_step(model, data), sizes), model, data)
    found["no_autograd"] = rates(train_step(model, lambda: our_step(model, data, sizes), sizes), model, data)
    patches = (sizes.small_tower["image_size"] // sizes.small_tower["patch_size"]) ** 2
    kept = torch.randn(len(data.pixels), patches, sizes.small_tower["hidden_size"], dtype=sizes.dtype)
    kept = kept.pin_memory() if sizes.device == "cuda" else kept
    step = train_step(model, lambda: our_step(model, data, sizes, features=kept), sizes)
    found["cached"] = rates(step, model, data, cached=True)
    return found


def shared(sizes: Sizes) -> dict[str, Any]:
    """Questions a second: one image once for all its questions, against an image a question."""
    model = make_model(sizes.big_tower, sizes.big, sizes)
    net = model.base_model.model
    patches, answer = (sizes.big_tower["image_size"] // sizes.big_tower["patch_size"]) ** 2, max(8, sizes.text // 4)
    padded = work(net, sizes, None, sizes.questions, answer, 4)
    found = {"padded": train_step(model, lambda: their_step(model, padded), sizes)}
    use_flex(net, sizes)
    compiled(net, sizes)
    each = patches + answer
    apart = Row(tuple((each * n, each, ()) for n in range(sizes.questions)), each * sizes.questions)
    branches = Row(((0, patches, (answer,) * sizes.questions),), patches + answer * sizes.questions)
    for name, row in (("packed", apart), ("shared_image", branches)):
        data, mask = work(net, sizes, row, 0, answer, 4), flex_mask(row, sizes)
        found[name] = train_step(model, partial(our_step, model, data, sizes, mask), sizes)
    return {name: step | {"questions_per_second": sizes.questions / (step["ms"] / 1e3)} for name, step in found.items()}


def trl_steps(sizes: Sizes) -> Any:
    """TRL's trainer, tuned, on documents of the same length; milliseconds a step."""
    try:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError as missing:
        return f"not run: {missing}"
    if sizes.device != "cuda":
        return "not run: on a GPU only"
    gc.collect()
    torch.cuda.empty_cache()
    model = make_model(sizes.big_tower, sizes.big, sizes)
    data = work(model.base_model.model, sizes, None, 1, sizes.text, sizes.supervised)

    def collate(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        some = {"input_ids": data.ids, "labels": data.labels, "pixel_values": data.pixels}
        return {name: value.cpu().repeat(len(rows), *[1] * (value.dim() - 1)) for name, value in some.items()}

    steps, marks = sizes.repeats + 2, []
    config = SFTConfig(
        output_dir="trl-out", max_steps=steps, per_device_train_batch_size=sizes.padded, gradient_checkpointing=False, bf16=True,
        report_to="none", save_strategy="no", logging_steps=1, max_length=None, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": [[0]] * (steps * sizes.padded)})
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, data_collator=collate, processing_class=_words())
    made = trainer.training_step

    def training_step(*given: Any, **named: Any) -> Any:
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return made(*given, **named)

    trainer.training_step = training_step
    trainer.train()
    spent = [later - sooner for sooner, later in itertools.pairwise(marks[2:])]
    found = {"ms": statistics.median(spent) * 1e3, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    return rates(found, model, work(model.base_model.model, sizes, None, sizes.padded, sizes.text, sizes.supervised))


def _words() -> Any:
    """A tokenizer of bytes: TRL wants one, and tokenises nothing here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={chr(n): n for n in range(33, 127)}, merges=[]))
    inner.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")

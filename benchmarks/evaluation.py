"""Questions a processor second: shared prefill against transformers' `generate` one by one, on VQA-RAD, answers compared.

1. Questions of some images: those of the official test split alone (2 an image), and all of them (7 an image).
2. As an evaluation asks them: with their images, and again blind, with one image for all.
3. Random weights never end an answer, so every answer has the number of new tokens that is asked for: 4, about what VQA-RAD's
   answers have, and 16.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.architecture.assembly import Assistant, build
from model.architecture.features import FeatureSource
from model.architecture.joint import encode
from model.config import Kind, Model
from model.data.dataset import DataSet, open_dataset
from model.data.pixels import READING, PixelSource
from model.data.records import Record
from model.data.sources.vqa_rad import import_vqa_rad
from model.data.templates import Prompter
from model.evaluation.generate import answer_all, blinded

NEW_TOKENS, BATCH = (4, 16), 64
IMAGES = int(os.environ.get("BENCH_IMAGES", "12"))
SPLITS = {"test": ("test",), "all": ("test", "train_official")}
VOCABULARY = 32_064
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<image>", "<pad>")
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": 336,
    "patch_size": 14,
}
BODIES = {"h256x4": (256, 4), "h512x8": (512, 8)}


def measure() -> dict[str, float]:
    """Both ways on each model, processor seconds of one thread."""
    source = Path(os.environ.get("BENCH_VQA_RAD", ""))
    if not (source / "VQA_RAD Dataset Public.json").is_file():
        print("evaluation: skipped, BENCH_VQA_RAD names no folder with VQA-RAD as published")
        return {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        import_vqa_rad(source, Path(folder) / "set")
        dataset = open_dataset(Path(folder) / "set")
        return {
            f"{name}_{which}_{tokens}_{key}": value
            for name in BODIES
            for which, splits in SPLITS.items()
            for tokens in NEW_TOKENS
            for key, value in _case(name, dataset, Path(folder) / name, splits, tokens).items()
        }


def _case(name: str, dataset: DataSet, folder: Path, splits: Sequence[str], tokens: int) -> dict[str, float]:
    """Costs and ratios of one model on the questions of some images, seeing and blind."""
    # Two of them: ours changes the layers of the one that it is given.
    assistant, plain = (_assistant(name, dataset, folder) for _ in range(2))
    records = _some(dataset, splits)
    source = PixelSource(assistant.image_processor, cache_bytes=0)
    features = FeatureSource(assistant, source, READING, kept_bytes=0)
    blank = torch.zeros(1, 3, TOWER["image_size"], TOWER["image_size"])
    seen = encode(assistant.model, blank)
    halves = {
        "seeing": (
            records,
            lambda names: features([dataset.path(name) for name in names]),
            lambda record: source([dataset.path(image) for image in record.images]),
        ),
        "blind": (blinded(records), lambda names: seen.expand(len(names), -1, -1), lambda record: blank),
    }
    costs: dict[str, float] = {"questions": len(records), "images": len({record.images for record in records}), "differ": 0}
    for half, (asked, ours, theirs) in halves.items():
        answer_all(assistant, asked[:1], ours, BATCH, tokens)  # what is loaded at the first question is in no figure
        _one_by_one(plain, asked[:1], theirs, tokens)
        began = time.process_time()
        together = answer_all(assistant, asked, ours, BATCH, tokens)
        costs[f"{half}_shared_seconds"] = time.process_time() - began
        began = time.process_time()
        alone = _one_by_one(plain, asked, theirs, tokens)
        costs[f"{half}_one_by_one_seconds"] = time.process_time() - began
        costs["differ"] += sum(a.text != b for a, b in zip(together, alone, strict=True))
        costs[f"{half}_ratio"] = costs[f"{half}_one_by_one_seconds"] / costs[f"{half}_shared_seconds"]
    whole = [sum(costs[f"{half}_{way}_seconds"] for half in halves) for way in ("one_by_one", "shared")]
    print(f"{name}, {'+'.join(splits)}, {tokens} tokens: {costs}", flush=True)
    return costs | {"evaluation_ratio": whole[0] / whole[1]}


def _some(dataset: DataSet, splits: Sequence[str]) -> list[Record]:
    records = [record for split in splits for record in dataset.records(split, [Kind.QUESTION])]
    images = sorted({record.images for record in dataset.records("test", [Kind.QUESTION])})[:IMAGES]
    return [record for record in records if record.images in images]


@torch.inference_mode()
def _one_by_one(
    assistant: Assistant, records: Sequence[Record], pixels: Callable[[Record], torch.Tensor], tokens: int
) -> list[str]:
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    answers = []
    for record in records:
        ids = torch.tensor([prompter.prompt(record.turns[:1], len(record.images))])
        whole = assistant.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels(record),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=prompter.end_token_id,
            pad_token_id=prompter.pad_token_id,
            use_cache=True,
        )
        answers.append(assistant.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


def _assistant(name: str, dataset: DataSet, folder: Path) -> Assistant:
    """Random weights, and words learned from the questions, so that they have the length of a real tokenizer's."""
    width, layers = BODIES[name]
    _tokenizer(dataset).save_pretrained(str(folder))
    language = {
        "model_type": "llama",
        "tokenizer": str(folder),
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    settings = {"tower": {"config": TOWER}, "language": {"config": language}, "context_tokens": 1024}
    assistant = build(Model.model_validate(settings), {}, seed=0)
    assistant.model.requires_grad_(False)
    return assistant


def _tokenizer(dataset: DataSet) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator((record.turns[0].text for record in dataset.records("train_official")), trainer)
    # A word for every row of the head: an answer that no word stands for would compare as equal to any other.
    inner.add_tokens([f" word{number}" for number in range(VOCABULARY - inner.get_vocab_size())])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[-1])

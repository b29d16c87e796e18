"""Questions a processor second: shared prefill against transformers' `generate` one by one, on VQA-RAD, answers compared."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.architecture.assembly import Assistant, build
from model.architecture.features import FeatureSource
from model.config import Kind, Model
from model.data.dataset import DataSet, open_dataset
from model.data.pixels import READING, PixelSource
from model.data.records import Record
from model.data.sources.vqa_rad import import_vqa_rad
from model.data.templates import Prompter
from model.evaluation.generate import answer_all

NEW_TOKENS, BATCH = 16, 64
IMAGES = int(os.environ.get("BENCH_IMAGES", "40"))
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
    """Both ways on each model, processor seconds of one thread; the blind control as well."""
    source = Path(os.environ.get("BENCH_VQA_RAD", ""))
    if not (source / "VQA_RAD Dataset Public.json").is_file():
        print("evaluation: skipped, BENCH_VQA_RAD names no folder with VQA-RAD as published")
        return {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        import_vqa_rad(source, Path(folder) / "set")
        dataset = open_dataset(Path(folder) / "set")
        results: dict[str, float] = {}
        for name in BODIES:
            for split in ("test", "train_official"):
                numbers = _compare(_assistant(name, dataset, Path(folder) / name), dataset, _some(dataset, split))
                results |= {f"{name}_{split}_{key}": value for key, value in numbers.items()}
    return results


def _some(dataset: DataSet, split: str) -> list[Record]:
    records = dataset.records(split, [Kind.QUESTION])
    images = sorted({record.images for record in records})[:IMAGES]
    return [record for record in records if record.images in images]


def _compare(assistant: Assistant, dataset: DataSet, records: Sequence[Record]) -> dict[str, float]:
    source = PixelSource(assistant.image_processor, cache_bytes=0)
    features = FeatureSource(assistant, source, READING, kept_bytes=0)
    began = time.process_time()
    ours = answer_all(assistant, records, lambda names: features([dataset.path(name) for name in names]), BATCH, NEW_TOKENS)
    shared = time.process_time() - began
    began = time.process_time()
    theirs = _one_by_one(assistant, dataset, records, source)
    single = time.process_time() - began
    return {
        "questions": len(records),
        "images": len({record.images for record in records}),
        "shared_questions_per_cpu_second": len(records) / shared,
        "one_by_one_questions_per_cpu_second": len(records) / single,
        "ratio": single / shared,
        "answers_that_differ": sum(a.text != b for a, b in zip(ours, theirs, strict=True)),
    }


@torch.inference_mode()
def _one_by_one(assistant: Assistant, dataset: DataSet, records: Sequence[Record], source: PixelSource) -> list[str]:
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    answers = []
    for record in records:
        ids = torch.tensor([prompter.prompt(record.turns[:1], len(record.images))])
        whole = assistant.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=source([dataset.path(image) for image in record.images]),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
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
    return build(Model.model_validate(settings), {}, seed=0)


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

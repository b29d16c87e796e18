"""Two tiny assistants to train: one whose head is most of the work, one whose body is.

1. `make` writes tower and language model as base models, random weights from a fixed seed; the tokenizer is learned from `texts`.
2. It assembles the assistant once, with the connector drawn from the seed that the stage will use, and writes it as a LLaVA folder
   of transformers: what the peers read. Ours reads the base models; `check_same` compares both, tensor by tensor.

A head-heavy model alone would flatter whoever filters the head; CPU figures of either say nothing about GPU kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from model import manifest
from model.architecture.assembly import Assistant, build
from model.config import Model, Template
from model.data.loading import chat_template
from model.training.base_language import make_tokenizer

SEED = 7
IMAGE_SIZE, PATCH_SIZE = 336, 14
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
CONTEXT = 8192


@dataclass(frozen=True)
class Shape:
    """Of a language model; the tower is the same in all."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int


SHAPES = {
    "head_heavy": Shape(hidden=256, layers=4, intermediate=704, heads=4, vocabulary=32_064),
    "body_heavy": Shape(hidden=512, layers=8, intermediate=1408, heads=8, vocabulary=8_192),
}
TINY = Shape(hidden=32, layers=2, intermediate=64, heads=2, vocabulary=1_100)
"""For tests."""


@dataclass(frozen=True)
class Bases:
    """Folders of one model."""

    tower: Path
    language: Path
    llava: Path
    """The assembled assistant with its processor, as transformers writes it."""

    @property
    def mapping(self) -> dict[str, Path]:
        """As `StageInputs.bases`."""
        return {"tower": self.tower, "language": self.language}


def settings() -> Model:
    """The recipe part that names both base models."""
    return Model.model_validate(
        {
            "tower": {"source": "registry:tower"},
            "language": {"source": "registry:language"},
            "template": Template.VICUNA_V1,
            "context_tokens": CONTEXT,
        }
    )


def make(folder: Path, shape: Shape, texts: Sequence[str], tower: Mapping[str, int] | None = None) -> Bases:
    """Write the model of `shape` under `folder`, or find it there.

    Args:
        folder: Of this model.
        shape: Of the language model.
        texts: What the tokenizer learns its merges from.
        tower: Changes of the tower's config, for tests.
    """
    bases = Bases(folder / "tower", folder / "language", folder / "llava")
    if (bases.llava / "model.safetensors").is_file():
        return bases
    _write_tower(bases.tower, {**TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, **(tower or {})})
    _write_language(bases.language, shape, make_words(texts))
    assistant = build(settings(), bases.mapping, SEED)
    assistant.model.save_pretrained(str(bases.llava))
    _processor(assistant).save_pretrained(str(bases.llava))
    return bases


def check_same(bases: Bases) -> None:
    """ValueError unless the LLaVA folder holds, tensor by tensor, what a stage of ours builds from the base models."""
    ours = build(settings(), bases.mapping, SEED).model.state_dict()
    theirs = LlavaForConditionalGeneration.from_pretrained(str(bases.llava), dtype=torch.float32).state_dict()
    other = [name for name in ours.keys() | theirs.keys() if name not in ours or name not in theirs]
    other += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    if other:
        raise ValueError(
            f"{len(other)} of {len(ours)} tensors differ between the base models and {bases.llava}: {sorted(other)[:3]}"
        )


def make_words(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that opens with `<s>` and ends with `</s>`, as LLaVA-1.5's."""
    words = make_tokenizer(texts)
    words.bos_token, words.eos_token = "<s>", "</s>"
    words.model_max_length = CONTEXT
    return words


def _write_tower(folder: Path, values: Mapping[str, int]) -> None:
    torch.manual_seed(SEED)
    with manifest.commit(folder, "base") as aside:
        CLIPVisionModel(CLIPVisionConfig(**values)).save_pretrained(str(aside))
        size = values["image_size"]
        CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(str(aside))


def _write_language(folder: Path, shape: Shape, words: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(SEED + 1)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with manifest.commit(folder, "base") as aside:
        LlamaForCausalLM(config).save_pretrained(str(aside))
        words.save_pretrained(str(aside))


def _processor(assistant: Assistant) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=assistant.image_processor,
        tokenizer=assistant.tokenizer,
        patch_size=assistant.model.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy then drops
        chat_template=chat_template(assistant.template, assistant.system),
    )

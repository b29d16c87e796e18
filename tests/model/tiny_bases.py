"""Two real base models of a few thousand weights, for tests: a CLIP vision tower and a Llama with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from model import config, manifest

IMAGE_SIZE, PATCH_SIZE, WIDTH = 16, 8, 32
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|im_start|>", "<|im_end|>", "<image>", "<pad>", "</s>"),
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the control tokens of all templates."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<pad>"
    )


def tower_config() -> CLIPVisionConfig:
    """Two layers, four image tokens."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def language_config(vocab_size: int) -> LlamaConfig:
    """Two layers, grouped heads, untied head."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )


def make_tower(folder: Path, seed: int = 1) -> Path:
    """The tower as an artifact folder of kind base."""
    torch.manual_seed(seed)
    with manifest.commit(folder, "base", facts={"licence": "CC0-1.0"}) as aside:
        CLIPVisionModel(tower_config()).save_pretrained(str(aside))
        square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=square).save_pretrained(str(aside))
    return folder


def make_language(folder: Path) -> Path:
    """The language model with its tokenizer as an artifact folder of kind base."""
    torch.manual_seed(2)
    words = tokenizer()
    with manifest.commit(folder, "base", facts={"licence": "CC0-1.0"}) as aside:
        LlamaForCausalLM(language_config(len(words))).save_pretrained(str(aside))
        words.save_pretrained(str(aside))
    return folder


def model_settings(**changes: object) -> config.Model:
    """The recipe part that names both."""
    values = {"tower": {"source": "registry:tower"}, "language": {"source": "registry:language"}, "context_tokens": 256}
    return config.Model.model_validate(values | changes)

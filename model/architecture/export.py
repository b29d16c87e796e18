"""An assistant as one plain transformers folder, for whoever serves it.

1. `export` loads a checkpoint with its base models and merges every adapter.
2. It writes config, weights (safetensors), generation settings and the processor with its chat template.
3. The folder is committed with a manifest (kind "export"). `AutoModelForImageTextToText` and `AutoProcessor` read it without
   biovlm and give the same greedy answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import GenerationConfig, LlavaProcessor
from transformers.utils import logging as transformers_logging

from model import manifest
from model.architecture.assembly import IMAGE_TOKEN, Assistant
from model.architecture.checkpoint import load

KIND = "export"
CLASS_TOKENS = 1
"""Outputs of the tower that are no image token; the strategy "default" drops them."""


def export(checkpoint: Path, bases: Mapping[str, Path], final: Path, chat_template: str, end_token_id: int) -> Path:
    """Write the merged assistant to `final`.

    Args:
        checkpoint: A checkpoint folder.
        bases: Name in the registry -> folder.
        final: Where the export appears.
        chat_template: Jinja text for the processor (`model.data.templates.chat_template`).
        end_token_id: The token that ends an answer (`Prompter.end_token_id`); generation stops there.

    Returns:
        `final`. Errors as `checkpoint.load`, and CannotWriteError.
    """
    assistant = load(checkpoint, bases, merge=True)
    record = manifest.read(checkpoint)
    facts = {"stage": record.facts["stage"], "template": assistant.template, "image_tokens": assistant.image_tokens}
    with manifest.commit(final, KIND, {**record.parents, "checkpoint": record.digest}, facts) as folder:
        transformers_logging.disable_progress_bar()
        assistant.model.config.use_cache = True
        assistant.model.generation_config = _generation(assistant, end_token_id)
        assistant.model.save_pretrained(str(folder))
        _processor(assistant, chat_template).save_pretrained(str(folder))
    return final


def _generation(assistant: Assistant, end_token_id: int) -> GenerationConfig:
    """Greedy, and ended by the template's own token: the base model's may be another."""
    tokenizer = assistant.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_token_id
    return GenerationConfig(do_sample=False, bos_token_id=tokenizer.bos_token_id, eos_token_id=[end_token_id], pad_token_id=pad)


def _processor(assistant: Assistant, chat_template: str) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=assistant.image_processor,
        tokenizer=assistant.tokenizer,
        patch_size=assistant.model.config.vision_config.patch_size,
        vision_feature_select_strategy=assistant.model.config.vision_feature_select_strategy,
        chat_template=chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=CLASS_TOKENS,
    )

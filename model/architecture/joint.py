"""Where images and text meet: features, placeholders, and the logits that count.

1. `encode` gives the tower's features of images, outside autograd: the tower never learns, so no graph is ever built through it.
2. `check_joint` counts placeholders against images sequence by sequence. transformers compares only the totals of a batch, so one
   image too many in one record would hide one too few in another, and both would learn from the wrong image.
3. `supervised_logits` runs connector and language model, and the head on target positions alone.

B sequences, T tokens, N images, P image tokens an image, D tower features, S targets in the batch, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from model.batch import IGNORE, Batch
from model.errors import DataError


@torch.no_grad()
def encode(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tower features (N, P, D) of images (N, C, H, W), N from 0, from the layer that the model names, without the class token.

    They are `hidden_states[feature_layer]` of transformers, to the bit; the layers behind that one are not run.
    """
    tower = model.model.vision_tower
    if not len(pixel_values):
        return torch.zeros(0, model.config.image_seq_length, tower.config.hidden_size, dtype=tower.dtype, device=tower.device)
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values.to(tower.dtype)))
    layers = tower.encoder.layers
    for layer in layers[: model.config.vision_feature_layer % (len(layers) + 1)]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


def check_joint(batch: Batch, image_token_id: int, image_tokens: int) -> None:
    """Compare placeholders with images in every sequence.

    Args:
        batch: With `image_counts`.
        image_token_id: Id of the placeholder.
        image_tokens: P.

    Raises:
        DataError: A sequence has another number of placeholders than its images need, or the images of the batch are not the sum
            of those of its sequences. The letter names the record and both counts.
    """
    found = (batch.input_ids == image_token_id).sum(dim=1).tolist()
    if len(batch.image_counts) != len(found):
        raise DataError(f"image counts of {len(batch.image_counts)} sequences for {len(found)}", "make the batch with model.data")
    for row, (placeholders, images) in enumerate(zip(found, batch.image_counts, strict=True)):
        if placeholders != images * image_tokens:
            name = batch.record_ids[row] if batch.record_ids else f"number {row}"
            raise DataError(
                f"record {name!r} has {placeholders} image placeholders, its {images} images need {images * image_tokens}",
                "the data were rendered for another vision tower; render them with this assistant's tokenizer and image_tokens",
            )
    if len(batch.pixel_values) != sum(batch.image_counts):
        raise DataError(
            f"the batch holds {len(batch.pixel_values)} images, its records name {sum(batch.image_counts)}",
            "check the source of the pixels",
        )


def supervised_logits(
    model: LlavaForConditionalGeneration, batch: Batch, features: torch.Tensor, everywhere: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (S, V) of every target and the targets (S,) themselves, in the order of the sequences.

    Args:
        model: The network.
        batch: Padded on the right, checked by `check_joint`.
        features: (N, P, D) from `encode`.
        everywhere: Lead a batch without images through the connector as well, and its gradient back to it, as zero: workers that
            share out weights must all run the same layers.
    """
    dtype = model.model.multi_modal_projector.linear_1.weight.dtype
    given: dict[str, Any] = {"input_ids": batch.input_ids}
    if len(features):
        projected = model.model.multi_modal_projector(features.to(dtype))
        given["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}
    elif everywhere:
        blank = torch.zeros(1, 1, model.config.vision_config.hidden_size, dtype=dtype, device=batch.input_ids.device)
        nothing = model.model.multi_modal_projector(blank).sum() * 0.0
        given = {"inputs_embeds": model.get_input_embeddings()(batch.input_ids) + nothing}
    # No attention mask: padding stands on the right, where causal attention from a real token never looks, and without a mask
    # attention takes its fast causal kernel.
    hidden = model.model(**given, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    counted = targets != IGNORE
    return model.lm_head(hidden[:, :-1][counted]), targets[counted]

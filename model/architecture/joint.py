"""Where images and text meet: features, placeholders, and the hidden states that count.

1. `encode` gives the tower's features of images, outside autograd: the tower never learns, so no graph is ever built through it.
2. `check_joint` counts placeholders against images, for each sequence or packed document by itself. transformers compares only the
   totals of a batch, so one image too many in one record would hide one too few in another, and both would learn from the wrong image.
3. `embed` puts text and connected features together; `read` runs the language model over them, padded or packed, and gives the states
   from which a target is predicted: all that the head needs to see, and the last block to compute (last_block).

B sequences, T tokens, N images, P image tokens an image, D tower features, W width of the language model, S targets in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from model.architecture import last_block
from model.architecture.packed import layout_of
from model.batch import Batch
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
    """Compare placeholders with images in every sequence, or every document of a packed one.

    Args:
        batch: With `image_counts`.
        image_token_id: Id of the placeholder.
        image_tokens: P.

    Raises:
        DataError: One has another number of placeholders than its images need, or the images of the batch are not the sum of those
            of its sequences. The letter names the record and both counts.
    """
    placeholders = batch.input_ids == image_token_id
    if batch.documents:
        found = [int(placeholders[0, document.start : document.end].sum()) for document in batch.documents]
    else:
        found = placeholders.sum(dim=1).tolist()
    if len(batch.image_counts) != len(found):
        raise DataError(f"image counts of {len(batch.image_counts)} sequences for {len(found)}", "make the batch with model.data")
    for row, (count, images) in enumerate(zip(found, batch.image_counts, strict=True)):
        if count != images * image_tokens:
            name = batch.record_ids[row] if batch.record_ids else f"number {row}"
            raise DataError(
                f"record {name!r} has {count} image placeholders, its {images} images need {images * image_tokens}",
                "the data were rendered for another vision tower; render them with this assistant's tokenizer and image_tokens",
            )
    if len(batch.pixel_values) != sum(batch.image_counts):
        raise DataError(
            f"the batch holds {len(batch.pixel_values)} images, its records name {sum(batch.image_counts)}",
            "check the source of the pixels",
        )


def embed(model: LlavaForConditionalGeneration, batch: Batch, features: torch.Tensor, everywhere: bool = False) -> torch.Tensor:
    """Inputs (B, T, W) of the language model: embedded text, and the connector's output in the places of the placeholders.

    Args:
        model: The network.
        batch: Checked by `check_joint`.
        features: (N, P, D) from `encode`.
        everywhere: Lead a batch without images through the connector as well, and its gradient back to it, as zero: workers that
            share out weights must all run the same layers.
    """
    embedded = model.get_input_embeddings()(batch.input_ids)
    connector = model.model.multi_modal_projector
    dtype = connector.linear_1.weight.dtype
    if len(features):
        connected = connector(features.to(embedded.device, dtype)).to(embedded.dtype).flatten(0, 1)
        places = (batch.input_ids == model.config.image_token_id).flatten().nonzero()[:, 0]
        embedded = embedded.flatten(0, 1).index_copy(0, places, connected).view_as(embedded)
    elif everywhere:
        blank = torch.zeros(1, 1, model.config.vision_config.hidden_size, dtype=dtype, device=embedded.device)
        embedded = embedded + connector(blank).sum() * 0.0
    return embedded


def read(model: LlavaForConditionalGeneration, batch: Batch, embedded: torch.Tensor) -> torch.Tensor:
    """Hidden states (S, W) of the language model over `embed`'s output, at the batch's sources."""
    language = model.model.language_model
    given: dict[str, Any] = {}
    layout = layout_of(batch)
    if layout is not None:
        given = {"layout": layout, "position_ids": batch.positions}
    wanted = last_block.wanted_of(language, batch, layout)
    # No attention mask: padding stands on the right, where causal attention from a real token never looks, and without a mask
    # attention takes its fast causal kernel. No cache: transformers would attend over it, and not by the layout.
    if wanted is not None:
        given["wanted"] = wanted
    states = language(inputs_embeds=embedded, use_cache=False, **given).last_hidden_state.flatten(0, 1)
    return states if wanted is not None else states[batch.sources]

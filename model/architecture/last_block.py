"""The last block of a language model, where only the states that predict a target are wanted.

Behind the last block nothing mixes tokens any more, so states that no target is predicted from are thrown away, with the gradient zero.
Keys and values are needed of every token; queries, attention's rows, the output projection, the MLP and the last norm of the wanted
ones alone. A VQA answer is 1 to 5 tokens of some 600, so of that block little is left: of L blocks nearly one is not computed.
The loss and every gradient are those of the whole block, to float32's rounding.

1. `install` gives the last block a second way; without `wanted` it goes the old one, as in `generate`.
2. `wanted_of` says for a batch which positions count, and which keys each of them may see: None where most positions count and the
   causal kernel over all of them is cheaper.
3. Called with `wanted=`, the model returns states (1, S, W) instead of (B, T, W).
4. Called with `keys_alone=True`, the last block only writes its keys and values into the cache: all that is wanted of a prefix which
   questions will follow. What the model then returns says nothing.

Training uses it on a CPU. On a GPU blocks are compiled for one shape, S changes with every batch, and of 32 blocks there is 3 % to win.

B sequences, T tokens, S sources, D documents (the rows of a padded batch count as such), W width.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from model.architecture.heads import rotated
from model.architecture.packed import Layout, branch_mask
from model.batch import Batch, Document

BLOCKS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)
"""Whose attention is q, k, v, rotary positions and an output projection, and whose norms stand before attention and MLP."""
MOST_WANTED = 0.5
"""Share of positions above which the whole block is as cheap."""


@dataclass(frozen=True)
class Seen:
    """A document and the sources in it."""

    start: int
    """Its first position in B x T."""
    mask: torch.Tensor
    """(sources, keys) bool: the keys from `start` on that each source may see; at least one each."""


@dataclass(frozen=True)
class Wanted:
    """The states that are wanted of a batch."""

    places: torch.Tensor
    """(S,) positions in B x T, document by document."""
    seen: tuple[Seen, ...]
    """Of the documents that have sources, in order."""


def install(language: PreTrainedModel) -> bool:
    """Give the last block its second way; False for a block that is not known."""
    block = language.layers[-1]
    if type(block) not in BLOCKS:
        return False
    block.forward = types.MethodType(_forward, block)
    return True


def wanted_of(language: PreTrainedModel, batch: Batch, layout: Layout | None) -> Wanted | None:
    """What the last block shall compute for a batch; None if all of it, or if `install` was not called.

    Args:
        language: The decoder, without its head.
        batch: On the CPU.
        layout: Of a packed batch.
    """
    sequences, length = batch.input_ids.shape
    way = getattr(language.layers[-1].forward, "__func__", None)
    if way is not _forward or not 0 < len(batch.sources) <= MOST_WANTED * sequences * length:
        return None
    if layout is None:
        documents = [Document(number * length, length) for number in range(sequences)]
    else:
        documents = list(batch.documents)
    ends = torch.tensor([document.end for document in documents])
    counts = torch.bincount(torch.searchsorted(ends, batch.sources, right=True), minlength=len(documents)).tolist()
    each = zip(documents, batch.sources.split(counts), strict=True)
    return Wanted(batch.sources, tuple(_seen(document, places) for document, places in each if len(places)))


def _seen(document: Document, places: torch.Tensor) -> Seen:
    inside = places - document.start
    keys = torch.arange(int(inside.max()) + 1)
    causal = keys <= inside[:, None]
    branches = branch_mask(document)
    if branches is not None:
        in_branch = inside >= document.trunk
        causal[in_branch] = branches[inside[in_branch] - document.trunk, : len(keys)]
    return Seen(document.start, causal)


def _forward(
    block: Any,
    hidden_states: torch.Tensor,
    *,
    wanted: Wanted | None = None,
    keys_alone: bool = False,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **more: Any,
) -> torch.Tensor:
    """(B, T, W) to (B, T, W), or to (1, S, W) if some are wanted."""
    if keys_alone and position_embeddings is not None:
        return _write_keys(block, hidden_states, *position_embeddings, more["past_key_values"])
    if wanted is None or attention_mask is not None or position_embeddings is None:
        more |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
        found: torch.Tensor = type(block).forward(block, hidden_states, **more)
        return found if wanted is None else found.flatten(0, 1)[None, wanted.places]
    if block.gradient_checkpointing and block.training:  # as transformers does around the whole block's forward
        again: torch.Tensor = block._gradient_checkpointing_func(
            functools.partial(_at_places, block, position_embeddings=position_embeddings, wanted=wanted), hidden_states
        )
        return again
    return _at_places(block, hidden_states, position_embeddings, wanted)


def _at_places(
    block: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], wanted: Wanted
) -> torch.Tensor:
    attention = block.self_attn
    normed = block.input_layernorm(hidden_states)
    cos, sin = (part.expand(len(normed), -1, -1).flatten(0, 1)[None] for part in position_embeddings)
    normed = normed.flatten(0, 1)
    # In the order of the whole block: workers that share out weights (ZeRO-3) gather them together, whichever way each one goes.
    asking, keys, values = (
        layer(given).view(len(given), -1, attention.head_dim)
        for layer, given in ((attention.q_proj, normed[wanted.places]), (attention.k_proj, normed), (attention.v_proj, normed))
    )
    asking = rotated(asking[None], cos[:, wanted.places], sin[:, wanted.places])[0]
    keys = rotated(keys[None], cos, sin)[0]
    attended = attention.o_proj(_attend(attention, asking, keys, values, wanted))
    states = hidden_states.flatten(0, 1)[wanted.places] + attended
    return (states + block.mlp(block.post_attention_layernorm(states)))[None]


def _write_keys(block: Any, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Cache) -> torch.Tensor:
    attention, normed = block.self_attn, block.input_layernorm(hidden_states)
    heads = (*normed.shape[:2], -1, attention.head_dim)
    keys, values = (layer(normed).view(heads) for layer in (attention.k_proj, attention.v_proj))
    cache.update(rotated(keys, cos, sin).transpose(1, 2), values.transpose(1, 2), attention.layer_idx)
    return hidden_states


def _attend(attention: Any, asking: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    """(S, H, d) asking of (B x T, G, d) keys and values: (S, H x d)."""
    groups = asking.shape[1] // keys.shape[1]
    dropout = attention.attention_dropout if attention.training else 0.0
    # Cut once, not sliced for each document: the gradient of a slice is as large as what it was cut from.
    cuts = _cuts(wanted.seen, len(keys))
    stretches = (tensor.split(cuts)[1::2] for tensor in (keys, values))
    parts = asking.split([len(seen.mask) for seen in wanted.seen])
    pieces = []
    for part, own, told, seen in zip(parts, *stretches, wanted.seen, strict=True):
        by_head = (part, own.repeat_interleave(groups, dim=1), told.repeat_interleave(groups, dim=1))
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in by_head)
        found = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen.mask, dropout_p=dropout, scale=attention.scaling
        )
        pieces.append(found[0].transpose(0, 1).flatten(1))
    return torch.cat(pieces)


def _cuts(seen: tuple[Seen, ...], tokens: int) -> list[int]:
    """Lengths of stretches of B x T by turns: one that nobody looks at, one that a document's sources see."""
    lengths, end = [], 0
    for each in seen:
        lengths += [each.start - end, each.mask.shape[1]]
        end = each.start + each.mask.shape[1]
    return [*lengths, tokens - end]

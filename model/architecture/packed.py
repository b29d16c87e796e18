"""Attention over packed sequences: every document by itself, every branch with its trunk, and nothing else.

1. `install` makes the language model's blocks call `attend`, and refuses a model whose own attention is not plainly causal.
2. `layout_of` turns the documents of a batch into what the device's kernel wants, once for all blocks.
3. `attend` computes it. On a CPU each document goes to torch's fused kernel alone: a trunk with its causal kernel, the branches of a
   document together with a boolean mask over their trunk and themselves. No product between documents is ever computed. Layers that
   `fused` makes cheaper go another way, by the same documents.
   On a GPU FlexAttention does the same in one kernel from a block mask. On another device packing is refused: a dense mask would be
   quietly slow and large.

Branches of one document do meet in the CPU's masked kernel: their products are computed and masked. Calls for single branches
were measured slower (benchmarks/LOG.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from model.batch import Batch, Document
from model.errors import ConfigError

NAME = "biovlm_packed"
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Layout:
    """Documents of a batch, ready for a kernel."""

    documents: tuple[Document, ...] = ()
    """CPU; padding behind them is one more."""
    masks: tuple[torch.Tensor | None, ...] = ()
    """CPU: for each document (branches, trunk + branches) bool, true where a token of a branch may look; None without branches."""
    blocks: BlockMask | None = None
    """GPU: the same of the whole sequence. Alone, since compiled blocks are compiled again for every other number they are given."""


def install(language: PreTrainedModel, context_tokens: int) -> None:
    """Make a language model attend by layout, in packed batches alone.

    Args:
        language: The decoder, without its head.
        context_tokens: Longest example.

    Raises:
        ConfigError: Its attention looks back less far than an example is long.
    """
    window = getattr(language.config, "sliding_window", None) or context_tokens
    if getattr(language.config, "use_sliding_window", True) and window < context_tokens:
        raise ConfigError(
            f"the language model looks back {window:,} tokens, model.context_tokens is {context_tokens:,}",
            f"set packing: none, or model.context_tokens to {window} or less",
        )
    AttentionInterface.register(NAME, attend)
    language.config._attn_implementation = NAME


def compile_blocks(language: PreTrainedModel) -> None:
    """Compile each block of a language model for batches of one length: one compilation serves all of them."""
    for block in language.layers:
        block.compile(dynamic=False)


def layout_of(batch: Batch) -> Layout | None:
    """What `attend` needs for a packed batch, on the batch's device; None for a padded one. ConfigError on an unknown device."""
    if not batch.documents:
        return None
    device = batch.input_ids.device
    if device.type not in DEVICES:
        raise ConfigError(f"packing knows {' and '.join(DEVICES)}, the device is {device.type}", "set packing: none")
    length, end = batch.input_ids.shape[1], batch.documents[-1].end
    if device.type == "cuda":
        return Layout(blocks=block_mask(batch.documents, length, device))
    documents = batch.documents if length == end else (*batch.documents, Document(end, length - end))
    return Layout(documents, tuple(branch_mask(document) for document in documents))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (1, heads, T, d) to (1, T, heads, d). Heads of keys and values may be fewer."""
    if layout is None:
        raise ConfigError("a packed model was given a batch without a layout", "use `layout_of`")
    if layout.blocks is not None:
        found = _flex()(query, key, value, block_mask=layout.blocks, scale=scaling, enable_gqa=True)
        return found.transpose(1, 2).contiguous(), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    each = functools.partial(functional.scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    pieces: list[torch.Tensor] = []
    lengths = [document.end - document.start for document in layout.documents]
    # Cut where tokens are outermost, as projections wrote them and as gradients come back: every piece is one stretch of memory.
    cuts = ([piece.transpose(1, 2) for piece in part.transpose(1, 2).split(lengths, dim=1)] for part in (query, key, value))
    split = zip(*cuts, strict=True)
    for document, mask, (asking, seen, told) in zip(layout.documents, layout.masks, split, strict=True):
        if mask is None:
            pieces.append(each(asking, seen, told, is_causal=True))
            continue
        trunk, branches = asking.split((document.trunk, mask.shape[0]), dim=2)
        pieces.append(each(trunk, seen[:, :, : document.trunk], told[:, :, : document.trunk], is_causal=True))
        pieces.append(each(branches, seen, told, attn_mask=mask))
    return torch.cat([piece.transpose(1, 2) for piece in pieces], dim=1), None


def allowed(documents: tuple[Document, ...], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(T,) document and (T,) branch of every position, from 0; branch 0 is the trunk. Padding behind is a document of its own."""
    document, branch = torch.full((length,), len(documents)), torch.zeros(length, dtype=torch.int64)
    for number, each in enumerate(documents):
        document[each.start : each.end] = number
        place = each.start + each.trunk
        for which, size in enumerate(each.branches, 1):
            branch[place : place + size] = which
            place += size
    return document, branch


def block_mask(documents: tuple[Document, ...], length: int, device: torch.device | str) -> BlockMask:
    """FlexAttention's block mask: tiles in which no position may look at another are skipped."""
    document, branch = (part.to(device) for part in allowed(documents, length))

    def sees(_batch: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        own = (branch[column] == 0) | (branch[column] == branch[row])
        return (row >= column) & (document[row] == document[column]) & own

    return create_block_mask(sees, None, None, length, length, device=device)


@functools.cache
def _flex() -> Callable[..., torch.Tensor]:
    compiled: Callable[..., torch.Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


def branch_mask(document: Document) -> torch.Tensor | None:
    """(branches, trunk + branches) bool: where each token of a branch may look; None without branches."""
    if not document.branches:
        return None
    tokens = sum(document.branches)
    branch = torch.repeat_interleave(torch.arange(len(document.branches)), torch.tensor(document.branches))
    own = (branch[:, None] == branch[None, :]).tril()
    return torch.cat([torch.ones(tokens, document.trunk, dtype=torch.bool), own], dim=1)

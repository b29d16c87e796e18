"""Cheaper forms of the language model's layers for training in float32 on a CPU: the same results to rounding, fewer passes over memory.

1. Layers with LoRA are computed as `lora_products` says: those of one input together, the update within the weight.
2. Attention reads its documents as `heads` lays them out, and computes each by itself (`packed.attend_each`), packed or padded.
3. RMSNorm is one function with a backward pass of its own, instead of a chain of operations that each write and keep a tensor.

`install` changes how layers are computed, not what they hold: PEFT's modules keep, save and merge the weights as before. Layers with
dropout, of another type, or shared out among workers are left as they are.

B sequences, T tokens, W width.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import Cache, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

from model.architecture import packed
from model.architecture.heads import by_document, pair_order
from model.architecture.lora_products import is_plain, several
from model.batch import Document

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention)
MLPS = (LlamaMLP, MistralMLP, Qwen2MLP)


def install(language: PreTrainedModel) -> int:
    """Make the layers of a language model on the CPU cheaper; returns how many LoRA layers were."""
    count = 0
    for layer in language.modules():
        if isinstance(layer, LoraLinear) and is_plain(layer):
            layer.forward = types.MethodType(_lora_forward, layer)
            count += 1
        elif isinstance(layer, NORMS) and layer.weight.dtype is torch.float32:
            layer.forward = types.MethodType(_norm_forward, layer)
        elif isinstance(layer, ATTENTIONS) and all(map(is_plain, (layer.q_proj, layer.k_proj, layer.v_proj))):
            layer.forward = types.MethodType(_attention_forward, layer)
        elif isinstance(layer, MLPS) and all(map(is_plain, (layer.gate_proj, layer.up_proj))):
            layer.forward = types.MethodType(_mlp_forward, layer)
    return count


def _lora_forward(layer: LoraLinear, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    (y,) = several(x.flatten(0, -2), [layer], [None])
    return y.view(*x.shape[:-1], -1)


def _mlp_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = several(x.flatten(0, -2), [layer.gate_proj, layer.up_proj], [None, None])
    found: torch.Tensor = layer.down_proj((layer.act_fn(gate) * up).view(*x.shape[:-1], -1))
    return found


def _norm_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = _Norm.apply(x, layer.weight, layer.variance_epsilon)
    return normed


def _attention_forward(
    layer: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None = None,
    layout: packed.Layout | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, T, W) to (B, T, W); with a mask or a cache, as transformers does it, and so without a layout that is due: `attend` refuses."""
    layout_is_due = layer.config._attn_implementation == packed.NAME and layout is None
    if attention_mask is not None or past_key_values is not None or layout_is_due:
        again: tuple[torch.Tensor, torch.Tensor | None] = type(layer).forward(
            layer, hidden_states, position_embeddings, attention_mask, past_key_values, layout=layout, **more
        )
        return again
    sequences, length = hidden_states.shape[:2]
    if layout is None:
        layout = packed.Layout(tuple(Document(row * length, length) for row in range(sequences)), (None,) * sequences)
    cos, sin = (part.expand(sequences, -1, -1).flatten(0, 1) for part in position_embeddings)
    lengths = [document.end - document.start for document in layout.documents]
    asking, keys, values = _projected(layer, hidden_states.flatten(0, 1))
    pieces = by_document(asking, keys, values, cos, sin, lengths)
    dropout = layer.attention_dropout if layer.training else 0.0
    found = packed.attend_each(layout, pieces, dropout, layer.scaling)
    return layer.o_proj(found.view(sequences, length, -1)), None


def _projected(layer: Any, x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Queries and keys in pairs, and values."""
    projections, head = (layer.q_proj, layer.k_proj, layer.v_proj), layer.head_dim
    orders = (pair_order(projections[0].out_features, head), pair_order(projections[1].out_features, head), None)
    return several(x, projections, orders)


class _Norm(torch.autograd.Function):
    """Root mean square norm (Zhang and Sennrich 2019): w x / sqrt(mean(x^2) + e)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        for_weight = (grad * normed).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        scaled = grad * weight
        along = torch.linalg.vecdot(scaled, normed)[..., None].div_(x.shape[-1])
        return scaled.sub_(normed.mul_(along)).mul_(inverse), for_weight, None

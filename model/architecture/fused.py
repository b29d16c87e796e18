"""Cheaper forms of the language model's layers in float32 on a CPU: the same results to rounding, fewer passes over memory.

1. Frozen linear layers, with LoRA or without, are computed as `lora_products` says: those of one input together, an update within the
   weight.
2. Attention, SwiGLU and RMSNorm are compiled functions (`kernels`) with backward passes of their own, instead of chains of operations
   that each write and keep a tensor. Attention computes each document by itself, packed or padded.

`install` changes how layers are computed, not what they hold: PEFT's modules keep, save and merge the weights as before. Layers of another
type or shared out among workers are left as they are; of adapters with dropout, all but the frozen layer below.

B sequences, T tokens, N = B T, W width, I inner width of an MLP.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

from model.architecture import packed
from model.architecture.heads import attended, rotated
from model.architecture.kernels import pointwise
from model.architecture.kernels.compiling import share
from model.architecture.lora_products import is_plain, several
from model.batch import Document

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention)
MLPS = (LlamaMLP, MistralMLP, Qwen2MLP)
GATES = (SiLUActivation, nn.SiLU)
ROWS_A_THREAD = 128
"""Fewer tokens are done before a thread has begun: so the steps of an answer have none."""


def install(language: PreTrainedModel) -> int:
    """Make the layers of a language model on the CPU cheaper; returns how many of them have LoRA."""
    count = 0
    for layer in language.modules():
        if is_plain(layer):
            layer.forward = types.MethodType(_linear_forward, layer)
            count += isinstance(layer, LoraLinear)
        elif isinstance(layer, NORMS) and layer.weight.dtype is torch.float32:
            layer.forward = types.MethodType(_norm_forward, layer)
        elif isinstance(layer, ATTENTIONS) and all(map(is_plain, (layer.q_proj, layer.k_proj, layer.v_proj))):
            layer.forward = types.MethodType(_attention_forward, layer)
        elif isinstance(layer, MLPS) and isinstance(layer.act_fn, GATES) and all(map(is_plain, (layer.gate_proj, layer.up_proj))):
            layer.forward = types.MethodType(_mlp_forward, layer)
    return count


def _linear_forward(layer: nn.Module, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    (y,) = several(x.flatten(0, -2), [layer])
    return y.view(*x.shape[:-1], -1)


def _mlp_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = several(x.flatten(0, -2), [layer.gate_proj, layer.up_proj])
    found: torch.Tensor = layer.down_proj(gated(gate, up).view(*x.shape[:-1], -1))
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
    """(B, T, W) to (B, T, W); as transformers does it with a mask, with keys from before, with dropout, and without a layout that is due,
    which is refused."""
    dropped = layer.training and layer.attention_dropout > 0
    layout_is_due = layer.config._attn_implementation == packed.NAME and layout is None
    goes_on = past_key_values is not None and past_key_values.get_seq_length(layer.layer_idx) > 0
    if attention_mask is not None or goes_on or layout_is_due or dropped:
        again: tuple[torch.Tensor, torch.Tensor | None] = type(layer).forward(
            layer, hidden_states, position_embeddings, attention_mask, past_key_values, layout=layout, **more
        )
        return again
    sequences, length = hidden_states.shape[:2]
    documents = layout.documents if layout else [Document(row * length, length) for row in range(sequences)]
    cos, sin = (part.expand(sequences, -1, -1).flatten(0, 1) for part in position_embeddings)
    asking, keys, values = several(hidden_states.flatten(0, 1), [layer.q_proj, layer.k_proj, layer.v_proj])
    if past_key_values is not None:
        by_head = (sequences, length, -1, layer.head_dim)
        turned = rotated(keys.view(by_head), *position_embeddings).transpose(1, 2)
        past_key_values.update(turned, values.view(by_head).transpose(1, 2), layer.layer_idx)
    found = attended(asking, keys, values, cos, sin, documents, layer.scaling)
    return layer.o_proj(found.view(sequences, length, -1)), None


def gated(gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
    """SwiGLU (Shazeer 2020) of (N, I) gates and ups."""
    found: torch.Tensor = _Gated.apply(gates, ups)
    return found


class _Gated(torch.autograd.Function):
    """Nothing is kept but what it is given."""

    @staticmethod
    def forward(ctx: Any, gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gates, ups)
        found = torch.empty_like(gates)
        arrays = [each.numpy() for each in (gates.detach(), ups.detach(), found)]
        share(len(gates), lambda first, last: pointwise.gate(first, last, *arrays), ROWS_A_THREAD)
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gates, ups = ctx.saved_tensors
        back = torch.empty_like(gates), torch.empty_like(ups)
        arrays = [each.numpy() for each in (gates, ups, grad.contiguous(), *back)]
        share(len(gates), lambda first, last: pointwise.gate_back(first, last, *arrays), ROWS_A_THREAD)
        return back


class _Norm(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019): w x / sqrt(mean(x^2) + e)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        rows = x.contiguous().view(-1, x.shape[-1])
        found, inverses = torch.empty_like(rows), rows.new_empty(len(rows))
        ctx.save_for_backward(rows, weight, inverses)
        arrays = [each.detach().numpy() for each in (rows, weight, found, inverses)]
        share(len(rows), lambda first, last: pointwise.norm(first, last, pointwise.F32(epsilon), *arrays), ROWS_A_THREAD)
        return found.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        rows, weight, inverses = ctx.saved_tensors
        given, back = grad.contiguous().view(rows.shape), torch.empty_like(rows)
        arrays = [each.detach().numpy() for each in (rows, weight, inverses, given, back)]
        share(len(rows), lambda first, last: pointwise.norm_back(first, last, *arrays), ROWS_A_THREAD)
        for_weight = (given * rows).mul_(inverses[:, None]).sum(dim=0) if ctx.needs_input_grad[1] else None
        return back.view(grad.shape), for_weight, None

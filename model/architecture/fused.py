"""Cheaper forms of the language model's layers for training in float32 on a CPU: the same results to rounding, fewer passes over memory.

1. A LoRA layer adds its update to a copy of the weight for the moment of use, `W + s B A`, which costs next to nothing beside a product
   with thousands of tokens. So the forward pass is one product instead of three and two additions, and the gradient of the input is one
   instead of three. Those of A and B need x A' and g B, which are made in the backward pass. In float32 this rounds like any product;
   in bfloat16 the update would be lost in the weight's last bits, so there it is not done.
2. RMSNorm is one function with a backward pass of its own, instead of a chain of operations that each write and keep a tensor.
3. Rotary positions turn the two halves of a head where they lie, with a backward pass of their own: no rotated copy, no zeros around the
   gradient of each half.
4. `keep_freed_memory` stops glibc from giving every large tensor back to the system: a step asked for tens of thousands of pages anew.

`install` changes how layers are computed, not what they hold: PEFT's modules keep, save and merge the weights as before. Layers with
dropout, of another type, or shared out among workers are left as they are.

B sequences, T tokens, H heads of width d, r rank of the adapter.
"""

from __future__ import annotations

import ctypes
import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, eager_attention_forward
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RMSNorm

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention)
ADAPTER = "default"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of mallopt(3)."""
KEPT_BYTES = 1 << 30


def install(language: PreTrainedModel) -> int:
    """Make the layers of a language model on the CPU cheaper; returns how many LoRA layers were."""
    count = 0
    for layer in language.modules():
        if isinstance(layer, LoraLinear) and _plain(layer):
            layer.forward = types.MethodType(_merged_forward, layer)
            count += 1
        elif isinstance(layer, NORMS) and layer.weight.dtype is torch.float32:
            layer.forward = types.MethodType(_norm_forward, layer)
        elif isinstance(layer, ATTENTIONS) and next(layer.parameters()).dtype is torch.float32:
            layer.forward = types.MethodType(_attention_forward, layer)
    return count


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next tensors, up to a gigabyte a piece; without glibc nothing happens.

    Peak memory stays the same (measured: 1,210 and 1,223 MiB), and so does every result.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1)


def _plain(layer: LoraLinear) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and base.weight.dtype is torch.float32
        and not base.weight.requires_grad
        and not hasattr(base.weight, "ds_id")
        and list(layer.lora_A) == [ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
    )


def _merged_forward(layer: LoraLinear, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    base, down, up = layer.base_layer, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    y: torch.Tensor = _MergedLora.apply(x.flatten(0, -2), base.weight, base.bias, down, up, layer.scaling[ADAPTER])
    return y.view(*x.shape[:-1], -1)


def _norm_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = _Norm.apply(x, layer.weight, layer.variance_epsilon)
    return normed


def _attention_forward(
    layer: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the three forwards of transformers, with `rotated` in the middle."""
    heads = (*hidden_states.shape[:-1], -1, layer.head_dim)
    asking, keys, values = (part(hidden_states).view(heads) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    asking, keys = (rotated(part, *position_embeddings) for part in (asking, keys))
    asking, keys, values = (part.transpose(1, 2) for part in (asking, keys, values))
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, layer.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(layer.config._attn_implementation, eager_attention_forward)
    if not isinstance(layer, LlamaAttention):
        window = layer.sliding_window if isinstance(layer, Qwen2Attention) else getattr(layer.config, "sliding_window", None)
        more["sliding_window"] = window
    dropout = layer.attention_dropout if layer.training else 0.0
    found, weights = attend(layer, asking, keys, values, attention_mask, dropout=dropout, scaling=layer.scaling, **more)
    return layer.o_proj(found.reshape(*hidden_states.shape[:-1], -1)), weights


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su and others 2021): (B, T, H, d) states turned by (B or 1, T, d) cosines and sines."""
    turned: torch.Tensor = _Rotary.apply(x, cos[:, :, None], sin[:, :, None])
    return turned


class _Rotary(torch.autograd.Function):
    """x cos + (-x2, x1) sin, of x = (x1, x2)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        turned = torch.empty_like(x)
        (x1, x2), (c1, c2), (s1, s2), (y1, y2) = (part.chunk(2, dim=-1) for part in (x, cos, sin, turned))
        # Not addcmul_, which rounds once where transformers rounds twice: keys are the same bits whichever way they were made.
        torch.mul(x1, c1, out=y1).sub_(x2 * s1)
        torch.mul(x2, c2, out=y2).add_(x1 * s2)
        return turned

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        back = torch.empty_like(grad)
        (g1, g2), (c1, c2), (s1, s2), (x1, x2) = (part.chunk(2, dim=-1) for part in (grad, cos, sin, back))
        torch.mul(g1, c1, out=x1).add_(g2 * s2)
        torch.mul(g2, c2, out=x2).sub_(g1 * s1)
        return back, None, None


class _MergedLora(torch.autograd.Function):
    """x (W + s B A)' + b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        merged = torch.addmm(weight, up, down, alpha=scale)
        return nn.functional.linear(x, merged, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up = ctx.saved_tensors
        for_x = grad @ torch.addmm(weight, up, down, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
        for_down = ((grad @ up).T @ x).mul_(ctx.scale)
        for_up = (grad.T @ (x @ down.T)).mul_(ctx.scale)
        return for_x, None, None, for_down, for_up, None


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

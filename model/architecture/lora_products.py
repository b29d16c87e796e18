"""Linear layers with frozen weights and LoRA updates as one autograd function, for several layers that read the same input.

1. A layer adds its update to a copy of the weight for the moment of use, `W + s B A`, which costs next to nothing beside a product
   with thousands of tokens. So the forward pass is one product instead of three and two additions, and the gradient of the input is
   one instead of three. In float32 this rounds like any product; in bfloat16 the update would be lost in the weight's last bits.
2. Layers of one input (queries, keys and values; gate and up) add their gradients of it within the product.
3. The gradients of A and B are four products with 16 columns, which a library computes at half a processor's speed: ours (`thin`).

N tokens, I inputs, O outputs of a layer, r its rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from model.architecture.kernels import thin
from model.architecture.kernels.compiling import share
from model.architecture.kernels.pointwise import F32
from model.architecture.kernels.tile import COLUMNS

ADAPTER = "default"


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a frozen linear one in float32, alone or with one LoRA adapter without dropout, held whole by this process."""
    base = layer
    if isinstance(layer, LoraLinear):
        if list(layer.lora_A) != [ADAPTER] or not isinstance(layer.lora_dropout[ADAPTER], nn.Identity):
            return False
        base = layer.base_layer
    return (
        type(base) is nn.Linear
        and base.weight.dtype is torch.float32
        and not base.weight.requires_grad
        and not hasattr(base.weight, "ds_id")
    )


def several(x: torch.Tensor, layers: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """(N, O) outputs of each plain layer for (N, I) inputs."""
    scales, tensors = [], []
    for layer in layers:
        if isinstance(layer, LoraLinear):
            base = layer.base_layer
            scales.append(float(layer.scaling[ADAPTER]))
            tensors += [base.weight, base.bias, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
        else:
            scales.append(0.0)
            tensors += [layer.weight, layer.bias, None, None]
    found: tuple[torch.Tensor, ...] = _Several.apply(x, scales, *tensors)
    return found


class _Several(torch.autograd.Function):
    """x (W + s B A)' + b of several layers; tensors are W, b, A, B of each, the last two None without an adapter."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: Sequence[float], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x, *tensors)
        ctx.scales = scales
        return tuple(
            nn.functional.linear(x, _merged(scale, weight, down, up), bias)
            for scale, (weight, bias, down, up) in zip(scales, _by_four(tensors), strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        layers = list(zip(ctx.scales, _by_four(tensors), grads, strict=True))
        for_x = None
        if ctx.needs_input_grad[0]:
            for scale, (weight, _, down, up), grad in layers:
                merged = _merged(scale, weight, down, up)
                for_x = grad @ merged if for_x is None else for_x.addmm_(grad, merged)
        found: list[torch.Tensor | None] = []
        for scale, (_, _, down, up), grad in layers:
            found += [None] * 4 if down is None else [None, None, *_for_adapter(x, grad, scale, down, up)]
        return for_x, None, *found


def _for_adapter(x: torch.Tensor, grad: torch.Tensor, scale: float, down: torch.Tensor, up: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of A (r, I) and B (O, r)."""
    rank = len(down)
    columns = -rank % COLUMNS + rank
    downs, ups = x.new_zeros(x.shape[1], columns), x.new_zeros(grad.shape[1], columns)
    downs[:, :rank], ups[:, :rank] = down.T, up
    chunks = -(-len(x) // thin.CHUNK)
    for_down, for_up = x.new_empty(chunks, *downs.shape), x.new_empty(chunks, *ups.shape)
    arrays = [each.numpy() for each in (x, grad.contiguous(), downs, ups, for_down, for_up)]
    share(chunks, lambda first, last: thin.adapt_back(first, last, F32(scale), *arrays))
    return [for_down.sum(dim=0)[:, :rank].T, for_up.sum(dim=0)[:, :rank]]


def _merged(scale: float, weight: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor | None) -> torch.Tensor:
    """(O, I) weight with its update."""
    return weight if up is None or down is None else torch.addmm(weight, up, down, alpha=scale)


def _by_four(tensors: Sequence[Any]) -> list[Sequence[Any]]:
    return [tensors[start : start + 4] for start in range(0, len(tensors), 4)]

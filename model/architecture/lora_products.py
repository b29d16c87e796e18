"""Linear layers with frozen weights and LoRA updates as one autograd function, for several layers that read the same input.

1. A layer adds its update to a copy of the weight for the moment of use, `W + s B A`, which costs next to nothing beside a product
   with thousands of tokens. So the forward pass is one product instead of three and two additions, and the gradient of the input is
   one instead of three. In float32 this rounds like any product; in bfloat16 the update would be lost in the weight's last bits.
2. Layers of one input (queries, keys and values; gate and up) add their gradients of it within the product.
3. Products of many tokens are ours (`products`), those of few a library's. The gradients of A and B are four products with 16 columns,
   which a library computes at half a processor's speed: ours too (`thin`).

N tokens, I inputs, O outputs of a layer, r its rank, 0 without an adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from model.architecture.kernels import products, thin
from model.architecture.kernels.compiling import share
from model.architecture.kernels.pointwise import F32
from model.architecture.kernels.tile import COLUMNS, WIDE

ADAPTER = "default"
LEAST_TOKENS = sys.maxsize if WIDE else 512
"""From how many on products are ours. Fewer do not earn the panels. On processors with AVX-512 ours have not been measured."""


class Layer(NamedTuple):
    """What a plain layer computes with: x (W + s B A)' + b."""

    scale: float
    weight: torch.Tensor
    """(O, I) W."""
    bias: torch.Tensor | None
    """(O,)."""
    down: torch.Tensor
    """(r, I) A."""
    up: torch.Tensor
    """(O, r) B."""


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
    parts = list(map(_parts, layers))
    tensors = (tensor for part in parts for tensor in part[1:])
    found: tuple[torch.Tensor, ...] = _Several.apply(x, [part.scale for part in parts], *tensors)
    return found


def _parts(layer: Any) -> Layer:
    if not isinstance(layer, LoraLinear):
        outputs, inputs = layer.weight.shape
        return Layer(0.0, layer.weight, layer.bias, layer.weight.new_empty(0, inputs), layer.weight.new_empty(outputs, 0))
    base, down, up = layer.base_layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return Layer(float(layer.scaling[ADAPTER]), base.weight, base.bias, down.weight, up.weight)


class _Several(torch.autograd.Function):
    """Outputs of several layers; tensors are those of each `Layer`, behind each other."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: Sequence[float], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x = x.contiguous()
        ctx.save_for_backward(x, *tensors)
        ctx.scales = scales
        found = []
        for layer in _layers(scales, tensors):
            outputs = len(layer.weight)
            out = x.new_empty(len(x), outputs) if layer.bias is None else layer.bias.repeat(len(x), 1)
            _multiply(x, layer, out, transposed=True, kept=layer.bias is not None)
            found.append(out)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        found: list[torch.Tensor | None] = []
        for number, (layer, given) in enumerate(zip(_layers(ctx.scales, tensors), grads, strict=True)):
            grad = given.contiguous()
            if for_x is not None:
                _multiply(grad, layer, for_x, transposed=False, kept=number > 0)
            found += [None, None, *(_for_adapter(x, grad, layer) if len(layer.down) else (None, None))]
        return for_x, None, *found


def _layers(scales: Sequence[float], tensors: Sequence[Any]) -> Iterator[Layer]:
    return (Layer(scale, *tensors[4 * number : 4 * number + 4]) for number, scale in enumerate(scales))


def _multiply(x: torch.Tensor, layer: Layer, out: torch.Tensor, *, transposed: bool, kept: bool) -> None:
    """out = x (W + s B A), or x (W + s B A)', added to what is in `out` if that is kept."""
    scale, weight, _, down, up = layer
    if len(x) < LEAST_TOKENS or any(size % COLUMNS for size in weight.shape):
        merged = torch.addmm(weight, up, down, alpha=scale) if len(down) else weight
        out.addmm_(x, merged.T if transposed else merged, beta=float(kept))
        return
    matrix, left, right = (weight.T, down.T, up.T.contiguous()) if transposed else (weight, up, down)
    panels = x.new_empty(matrix.shape[1] // COLUMNS, len(matrix), COLUMNS).numpy()
    laid = matrix.numpy(), F32(scale), left.detach().numpy(), right.detach().numpy(), panels
    share(len(panels), lambda first, last: products.lay(first, last, *laid))
    arrays = x.detach().numpy(), panels, out.numpy(), kept
    share(-(-len(x) // products.BLOCK), lambda first, last: products.multiply(first, last, *arrays))


def _for_adapter(x: torch.Tensor, grad: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of A and B."""
    rank = len(layer.down)
    columns = -rank % COLUMNS + rank
    downs, ups = x.new_zeros(x.shape[1], columns), x.new_zeros(grad.shape[1], columns)
    downs[:, :rank], ups[:, :rank] = layer.down.T, layer.up
    chunks = -(-len(x) // thin.CHUNK)
    for_down, for_up = x.new_empty(chunks, *downs.shape), x.new_empty(chunks, *ups.shape)
    arrays = [each.numpy() for each in (x, grad, downs, ups, for_down, for_up)]
    share(chunks, lambda first, last: thin.adapt_back(first, last, F32(layer.scale), *arrays))
    return for_down.sum(dim=0)[:, :rank].T, for_up.sum(dim=0)[:, :rank]

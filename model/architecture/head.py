"""The loss at supervised positions: the output layer sees nothing else.

A VQA answer is 1 to 5 tokens of some 600, so gathering its states first turns megabytes of logits into kilobytes. Where many positions
are supervised (captions), the logits are made and used up in chunks: the output layer is frozen, so the gradient with respect to
the states is known in the forward pass, and no logit is kept for the backward pass. Exact in both: the same sums over the vocabulary.

S targets, W width of the language model, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHUNK_NUMEL = 1 << 22
"""Most logits at once (16 MiB in float32), but for..."""
MIN_ROWS = 64
"""...the fewest positions with which the matrix product is as fast as with all."""


def loss_sum(head: nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of `head(states)` against `targets`, float32.

    Args:
        head: W to V; frozen or not.
        states: (S, W).
        targets: (S,) int64.
    """
    if head.weight.requires_grad or head.bias is not None or not states.requires_grad or hasattr(head.weight, "ds_id"):
        # DeepSpeed gathers a weight that it has shared out only when the layer itself is called.
        return functional.cross_entropy(head(states).float(), targets, reduction="sum")
    loss: torch.Tensor = _Chunked.apply(states, head.weight, targets)
    return loss


class _Chunked(torch.autograd.Function):
    """Cross-entropy of a frozen linear layer, with the gradient of the states made on the way."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(MIN_ROWS, CHUNK_NUMEL // len(weight))
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states)
        for start in range(0, len(states), rows):
            part, wanted = states[start : start + rows], targets[start : start + rows, None]
            logits = (part.to(weight.dtype) @ weight.T).float()
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            logits.sub_(normaliser).exp_()
            logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logits.dtype))
            gradient[start : start + rows] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None

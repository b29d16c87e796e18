"""How the workers of a run share one model: the small interface between the loop and a strategy of the recipe.

    strategy         what each worker holds                                                   class
    ddp              everything                                                               `Replicated`
    zero2            all weights; its part of gradients and moments                           `zero.Zero`
    zero3            its part of weights, gradients and moments                               `zero.Zero`

1. The loop gives every loss to `backward` and then, once a step, asks for `move`: gradients are added over the ranks, clipped, and
   the optimizer moves, unless the loop objects to the loss or the gradient is not finite.
2. `state` and `load` carry what was learned as whole, named tensors, whatever the strategy: checkpoints have one format.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from model.training.optimizer import Optimizer
from model.training.ranks import Ranks

Tensors = Mapping[str, torch.Tensor]
HASH_FACTOR = 1_000_003


class Computable(Protocol):
    """As much of the loop's objective as a strategy needs."""

    def loss_sum(self, micro: Sequence[int]) -> torch.Tensor:
        """Scalar sum of the losses of the examples, with its graph."""


class Sharing(Protocol):
    """What the loop and the checkpoints need from a strategy. All ranks call every method together."""

    @property
    def even(self) -> bool:
        """Whether every rank must make the same number of passes in a step, each through every part that learns."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def weights(self) -> Tensors:
        """Name -> what learns, by its shape; the values may be elsewhere, see `state`."""

    def loss_sum(self, objective: Computable, micro: Sequence[int]) -> torch.Tensor:
        """`objective.loss_sum(micro)`, with the weights in reach."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a scalar to those of this step; over all ranks the scalars add up."""

    def move(
        self, message: torch.Tensor, share: float, clip_norm: float, accept: Callable[[float], bool] = math.isfinite
    ) -> tuple[list[float], float]:
        """End the step: the optimizer moves, or the gradients are thrown away.

        Args:
            message: (N,) numbers of this rank, added over the ranks; the first is the loss.
            share: Of the peak learning rates.
            clip_norm: Largest norm of the gradient.
            accept: Of the added loss; gives the same answer on every rank.

        Returns:
            The added message, and the norm of the added gradient before clipping, NaN if it was not needed. If the loss was not
            accepted or the norm is not finite, on no rank has any weight or moment changed.
        """

    def rates(self, share: float) -> dict[str, float]:
        """Name of each group of weights -> its learning rate."""

    def state(self) -> tuple[Tensors, Tensors]:
        """Weights by name, and moments as `MOMENT/NAME`: whole on rank 0, elsewhere perhaps nothing."""

    def load(self, weights: Tensors, moments: Tensors, where: str) -> None:
        """The reverse of `state`, on every rank. DataError unless names and shapes fit; `where` is for the letter."""

    def fingerprint(self) -> torch.Tensor | None:
        """(1,) int64 of all bits of weights and moments, equal on all ranks while all is well; None where each holds another part."""

    def whole(self, parameters: Iterable[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        """Inside, these parameters hold their whole values on every rank."""


class Replicated:
    """Every worker holds the whole model; gradients are added up, and every worker makes the same step.

    Args:
        optimizer: Of the weights that learn.
        ranks: The workers.
    """

    even = False

    def __init__(self, optimizer: Optimizer, ranks: Ranks) -> None:
        self.optimizer = optimizer
        self._ranks = ranks
        self.weights: Tensors = optimizer.weights
        self.device = next(iter(optimizer.weights.values())).device

    def loss_sum(self, objective: Computable, micro: Sequence[int]) -> torch.Tensor:
        return objective.loss_sum(micro)

    def backward(self, loss: torch.Tensor) -> None:
        if loss.requires_grad:  # a pass without images has no path to the connector
            loss.backward()

    def move(
        self, message: torch.Tensor, share: float, clip_norm: float, accept: Callable[[float], bool] = math.isfinite
    ) -> tuple[list[float], float]:
        weights = self.optimizer.weights.values()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        message = self._sum(gradients, message.to(gradients[0].device))
        norm = torch.nn.utils.get_total_norm(gradients)
        *values, length = torch.cat([message, norm.reshape(1).to(message)]).tolist()
        if accept(values[0]) and math.isfinite(length):
            torch.nn.utils.clip_grads_with_norm_(weights, clip_norm, norm)
            self.optimizer.apply(share)
        else:
            self.optimizer.discard()
        return values, length

    def rates(self, share: float) -> dict[str, float]:
        return self.optimizer.rates(share)

    def state(self) -> tuple[Tensors, Tensors]:
        return self.optimizer.weights, self.optimizer.state()

    def load(self, weights: Tensors, moments: Tensors, where: str) -> None:
        with torch.no_grad():
            for name, weight in self.optimizer.weights.items():
                weight.copy_(weights[name])
        self.optimizer.load_state(moments, where)

    def fingerprint(self) -> torch.Tensor | None:
        weights, moments = self.state()
        sums = [_bits(tensor.detach()).sum(dtype=torch.int64) for values in (weights, moments) for tensor in values.values()]
        total = torch.zeros((), dtype=torch.int64)
        for value in torch.stack([value.to(self.device) for value in sums]).cpu():
            total = total * HASH_FACTOR + value  # wraps around, as hashes do
        return total.reshape(1)

    def whole(self, parameters: Iterable[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _sum(self, gradients: Sequence[torch.Tensor], message: torch.Tensor) -> torch.Tensor:
        """Add gradients over the ranks in place, and the message with them, in one go."""
        if self._ranks.world_size == 1:
            return message
        flat = self._ranks.sum(torch.cat([gradient.reshape(-1).float() for gradient in gradients] + [message]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return flat[start:]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers."""
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.uint8)

"""AdamW with one learning rate for each part, its schedule as a pure function, its state as named tensors.

1. `factor(step, total, ...)` is the share of the peak learning rate at a step: nothing to save, nothing to restore.
2. `Optimizer.apply(factor)` makes one step. Weight decay falls on matrices only, as is usual.
3. `Optimizer.state` and `load_state` carry the moments by the names of the weights, for safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.architecture.tensors import check_shapes
from model.config import Schedule

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Group:
    """Weights that share a learning rate."""

    name: str
    """Of the part, for the log."""
    rate: float
    """Peak learning rate."""
    weights: Mapping[str, nn.Parameter]
    """Live name -> weight."""


def warmup_steps(total: int, share: float) -> int:
    """Steps in which the learning rate rises."""
    return math.ceil(total * share)


def factor(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """Share of the peak learning rate, 0..1.

    Args:
        step: From 0. The first step already moves: the rise goes from 1 / warmup to 1.
        total: Steps of the whole run.
        warmup: Steps of the rise.
        schedule: What comes after it.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule is Schedule.CONSTANT:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def adamw(groups: Sequence[Group], betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with one group of its own for each part's matrices, and one for its other weights."""
    settings = []
    for group in groups:
        for decay, chosen in ((weight_decay, _matrices(group, True)), (0.0, _matrices(group, False))):
            if chosen:
                settings.append({"params": chosen, "lr": group.rate, "peak": group.rate, "weight_decay": decay})
    # fused: one pass over the weights instead of one for each operation; on two CPU cores a third of the time.
    return torch.optim.AdamW(settings, betas=betas, fused=True)


def set_rates(adam: torch.optim.AdamW, share: float) -> None:
    """Give every group of `adamw` this share of its peak learning rate."""
    for group in adam.param_groups:
        group["lr"] = group["peak"] * share


def rates(groups: Sequence[Group], share: float) -> dict[str, float]:
    """Name of each group -> this share of its peak learning rate."""
    return {group.name: group.rate * share for group in groups}


def check_moments(stored: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], where: str) -> None:
    """DataError unless there is exactly one set of moments, of the right shapes, for each weight."""
    expected = {
        f"{moment}/{name}": weight if moment != "step" else torch.tensor(0.0)
        for name, weight in weights.items()
        for moment in MOMENTS
    }
    check_shapes(stored, expected, where)


class Optimizer:
    """AdamW over groups of named weights."""

    def __init__(self, groups: Sequence[Group], betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        self.groups = tuple(groups)
        self.weights: dict[str, nn.Parameter] = {name: weight for group in groups for name, weight in group.weights.items()}
        self._adam = adamw(groups, betas, weight_decay)
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)  # never None: a rank without work adds zeros

    def apply(self, share: float) -> None:
        """One step with `share` of the peak learning rates, and gradients back to zero."""
        set_rates(self._adam, share)
        self._adam.step()
        self._adam.zero_grad(set_to_none=False)

    def discard(self) -> None:
        """Gradients back to zero, without a step."""
        self._adam.zero_grad(set_to_none=False)

    def rates(self, share: float) -> dict[str, float]:
        """Name of each group -> its learning rate."""
        return rates(self.groups, share)

    def state(self) -> dict[str, torch.Tensor]:
        """`MOMENT/NAME` -> tensor, for every weight that has made a step."""
        return {
            f"{moment}/{name}": self._adam.state[weight][moment]
            for name, weight in self.weights.items()
            if weight in self._adam.state
            for moment in MOMENTS
        }

    def load_state(self, stored: Mapping[str, torch.Tensor], where: str) -> None:
        """The reverse of `state`. DataError unless there is exactly one set of moments for each weight."""
        check_moments(stored, self.weights, where)
        for name, weight in self.weights.items():
            self._adam.state[weight] = {moment: stored[f"{moment}/{name}"].to(weight.device).clone() for moment in MOMENTS}


def _matrices(group: Group, wanted: bool) -> list[nn.Parameter]:
    return [weight for weight in group.weights.values() if (weight.ndim >= 2) is wanted]

"""What the two base models hand to the training loop, and the order in which they see their examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from model.training.loop import Objective, StepPlan


@dataclass(frozen=True)
class Lesson:
    """Everything that differs between the two base models."""

    objective: Objective
    plan: Sequence[StepPlan]
    weights: Mapping[str, nn.Parameter]
    """Everything that learns, by name."""
    rate: float
    """Peak learning rate."""
    write: Callable[[Path], None]
    """Writes the model as a transformers folder."""


def order(count: int, batch: int, steps: int, seed: int) -> list[StepPlan]:
    """`steps` steps of one forward pass with `batch` of `count` examples; all are seen before any is seen again.

    The examples at the end of an epoch that do not fill a batch are left out of it, so that no step is smaller than others.
    """
    draws = np.random.default_rng(seed)
    batch = min(batch, count)
    plan: list[StepPlan] = []
    while len(plan) < steps:
        shuffled = draws.permutation(count).tolist()
        plan += [((tuple(shuffled[start : start + batch]),),) for start in range(0, count - batch + 1, batch)]
    return plan[:steps]

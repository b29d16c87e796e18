from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from model.config import Schedule
from model.errors import DataError
from model.training.optimizer import Group, Optimizer, factor, warmup_steps


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    shares = [factor(step, 10, 2, Schedule.COSINE) for step in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[6] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[2:]))
    assert 0 < shares[-1] < 0.05
    assert [factor(step, 10, 2, Schedule.CONSTANT) for step in (0, 1, 5, 9)] == [0.5, 1, 1, 1]


def test_a_run_of_one_step_has_a_rate() -> None:
    assert factor(0, 1, warmup_steps(1, 0.03), Schedule.COSINE) == 1.0
    assert factor(0, 1, 0, Schedule.COSINE) == 1.0
    assert [warmup_steps(100, share) for share in (0, 0.03, 1)] == [0, 3, 100]


def test_each_part_has_its_rate_and_only_matrices_decay() -> None:
    parts = {name: nn.Parameter(torch.ones(shape)) for name, shape in (("a", (2, 2)), ("b", (2, 2)), ("bias", (2,)))}
    optimizer = Optimizer(
        [Group("fast", 0.1, {"a": parts["a"], "bias": parts["bias"]}), Group("slow", 0.01, {"b": parts["b"]})], weight_decay=0.5
    )
    optimizer.apply(0.5)
    moved = {name: float(1 - part.detach().flatten()[0]) for name, part in parts.items()}
    # Without a gradient only decay moves: rate x share x decay.
    assert moved == pytest.approx({"a": 0.1 * 0.5 * 0.5, "b": 0.01 * 0.5 * 0.5, "bias": 0.0})
    assert optimizer.rates(0.5) == {"fast": 0.05, "slow": 0.005}


def test_moments_of_other_weights_are_refused() -> None:
    one, other = (Optimizer([Group("part", 0.1, {name: nn.Parameter(torch.ones(2))})]) for name in ("one", "other"))
    one.apply(1.0)
    with pytest.raises(DataError, match="3 tensors missing .* 3 unknown"):
        other.load_state(one.state(), "here")

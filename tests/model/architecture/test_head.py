"""The loss of the output layer in chunks is the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.architecture import head


@pytest.mark.parametrize("count", [0, 1, 5, 64, 65])
def test_loss_and_gradient_in_chunks_are_those_of_all_logits_at_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MIN_ROWS", 16)
    monkeypatch.setattr(head, "CHUNK_NUMEL", 0)
    generator = torch.Generator().manual_seed(count)
    layer = nn.Linear(12, 50, bias=False).requires_grad_(False)
    states = torch.randn(count, 12, generator=generator, requires_grad=True)
    targets = torch.randint(50, (count,), generator=generator)
    plain = functional.cross_entropy(layer(states), targets, reduction="sum")
    chunked = head.loss_sum(layer, states, targets)
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(3 * loss, states)[0] for loss in (chunked, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_head_that_learns_gets_its_gradient() -> None:
    layer = nn.Linear(4, 9, bias=False)
    head.loss_sum(layer, torch.randn(3, 4, requires_grad=True), torch.tensor([1, 2, 3])).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_a_loss_that_is_not_finite_stays_so() -> None:
    layer = nn.Linear(4, 9, bias=False).requires_grad_(False)
    states = torch.full((2, 4), torch.nan, requires_grad=True)
    assert not torch.isfinite(head.loss_sum(layer, states, torch.tensor([1, 2])))

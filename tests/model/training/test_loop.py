from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from model.config import Schedule
from model.errors import DivergedError, PreemptedError
from model.training.loop import Micro, Settings, StepPlan, Training, train
from model.training.optimizer import Group, Optimizer
from model.training.ranks import Ranks
from model.training.reporter import ListReporter
from model.training.resume import Store
from model.training.sharing import Replicated
from tests.model.tiny_stages import stop_after


class Line:
    """Fits y = w x; example i has x = i + 1, y = 3 x, and i + 1 targets."""

    def __init__(self, bad_losses: Sequence[int] = (), bad_gradients: Sequence[int] = ()) -> None:
        self.weight = nn.Parameter(torch.tensor([[1.0]]))
        self.bad_losses, self.bad_gradients = set(bad_losses), set(bad_gradients)

    def num_targets(self, micro: Micro) -> int:
        return sum(index + 1 for index in micro)

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        total = torch.zeros(())
        for index in micro:
            x = float(index + 1)
            loss = (index + 1) * (self.weight.sum() * x - 3 * x).square()
            if index in self.bad_losses:
                loss = loss * math.nan
            if index in self.bad_gradients:
                loss = loss + (self.weight.sum() * 0).sqrt()  # 0, and its slope is infinite
            total = total + loss
        return total

    def names(self, micro: Micro) -> list[str]:
        return [f"record-{index}" for index in micro]

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        return {}


def training_of(
    line: Line, plan: Sequence[StepPlan], work: Path, clip_norm: float = 1e9, **changes: object
) -> tuple[Training, ListReporter]:
    reporter = ListReporter()
    values = {
        "objective": line,
        "plan": plan,
        "sharing": Replicated(Optimizer([Group("line", 0.1, {"weight": line.weight})]), Ranks()),
        "settings": Settings(Schedule.CONSTANT, 0, clip_norm, checkpoint_every=3),
        "store": Store(work, {"a": 1}, Ranks(), reporter),
        "reporter": reporter,
        "ranks": Ranks(),
        "stop": lambda: False,
    }
    return Training(**values | changes), reporter


def gradient_of(plan: StepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    line = Line()
    training, _ = training_of(line, [plan], tmp_path)
    seen: list[float] = []
    monkeypatch.setattr(training.sharing.optimizer, "apply", lambda share: seen.append(float(line.weight.grad)))
    train(training)
    return seen[0]


def test_a_target_counts_the_same_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    whole = line.loss_sum(range(6)) / line.num_targets(range(6))
    (expected,) = torch.autograd.grad(whole, line.weight)
    for plan in ([[range(6)]], [[[0], [1, 2, 3], [4, 5]]], [[[5, 0], [4, 3, 2, 1]]]):
        assert gradient_of(plan, tmp_path, monkeypatch) == pytest.approx(float(expected), rel=1e-6)


def test_the_gradient_is_clipped_by_its_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    training, reporter = training_of(line, [[[[3]]]], tmp_path, clip_norm=0.5)
    seen: list[float] = []
    monkeypatch.setattr(training.sharing.optimizer, "apply", lambda share: seen.append(float(line.weight.grad)))
    train(training)
    assert seen[0] == pytest.approx(-0.5, rel=1e-4)
    assert reporter.rows[0]["gradient_norm"] == pytest.approx(64.0)


@pytest.mark.parametrize(
    ("line", "says"),
    [(Line(bad_losses=[4]), "the loss is nan; records record-3, record-4;"), (Line(bad_gradients=[4]), "gradient nan|inf")],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_stops_the_run_before_the_weights_change(tmp_path: Path, line: Line, says: str) -> None:
    plan: list[StepPlan] = [[[[0]]], [[[1, 2], [3, 4]]]]
    training, reporter = training_of(line, plan, tmp_path)
    weights: list[float] = []
    apply = training.sharing.optimizer.apply

    def remember(share: float) -> None:
        apply(share)
        weights.append(float(line.weight.detach()))

    training.sharing.optimizer.apply = remember  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="step 2 of 2") as caught:
        train(training)
    assert caught.match(says)
    assert weights == [float(line.weight.detach())]
    assert [row["step"] for row in reporter.rows] == [1]


def test_where_passes_must_be_even_a_rank_makes_up_with_one_that_counts_nothing(tmp_path: Path) -> None:
    class Even(Replicated):
        even = True

    alone, one = training_of(Line(), [[[[1]], []]], tmp_path / "a")
    line = Line()
    sharing = Even(Optimizer([Group("line", 0.1, {"weight": line.weight})]), Ranks())
    padded, other = training_of(line, [[[[1]], [[0, 2], [2]]]], tmp_path / "b", sharing=sharing)
    passes: list[Micro] = []
    sharing.loss_sum = lambda objective, micro: passes.append(micro) or objective.loss_sum(micro)  # type: ignore[method-assign]
    train(alone)
    train(padded)
    assert passes == [[1], [0]]  # of this step's examples the one with the fewest targets
    # The same gradient, over 2 targets and over 9 of the whole step.
    assert other.rows[0]["gradient_norm"] * 9 == pytest.approx(one.rows[0]["gradient_norm"] * 2)
    assert other.rows[0]["loss"] * 9 == pytest.approx(one.rows[0]["loss"] * 2)


def test_a_stop_saves_and_the_last_step_is_not_stopped(tmp_path: Path) -> None:
    plan: list[StepPlan] = [[[[0]]]] * 4
    training, _ = training_of(Line(), plan, tmp_path / "a", stop=stop_after(2))
    with pytest.raises(PreemptedError, match="saved after step 2 of 4"):
        train(training)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["step-000002"]
    resumed, reporter = training_of(Line(), plan, tmp_path / "a", stop=stop_after(2))
    train(resumed)
    assert (reporter.resumes, [row["step"] for row in reporter.rows]) == ([2], [3, 4])


def test_a_pass_that_cannot_reach_the_weights_counts_in_the_loss(tmp_path: Path) -> None:
    class Half(Line):
        def loss_sum(self, micro: Micro) -> torch.Tensor:
            return torch.tensor(8.0) if 7 in micro else super().loss_sum(micro)

    training, reporter = training_of(Half(), [[[[7], [0]]]], tmp_path)
    train(training)
    assert reporter.rows[0]["loss"] == pytest.approx((8 + 4) / 9)

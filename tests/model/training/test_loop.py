from __future__ import annotations

import errno
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model import manifest
from model.config import Guard, Schedule
from model.errors import CannotWriteError, DivergedError, ExitCode, PreemptedError
from model.training import resume
from model.training.judge import Judge
from model.training.loop import Micro, Settings, StepPlan, Training, train
from model.training.optimizer import Group, Optimizer
from model.training.places import Folder
from model.training.ranks import Ranks
from model.training.reporter import ListReporter
from model.training.resume import Store
from model.training.sharing import Replicated
from tests.model.tiny_stages import stop_after


class Line:
    """Fits y = w x; example i has x = i + 1, y = 3 x, and i + 1 targets."""

    def __init__(
        self, bad_losses: Sequence[int] = (), bad_gradients: Sequence[int] = (), worse: Mapping[int, float] | None = None
    ) -> None:
        self.weight = nn.Parameter(torch.tensor([[1.0]]))
        self.bad_losses, self.bad_gradients, self.worse = set(bad_losses), set(bad_gradients), dict(worse or {})

    def num_targets(self, micro: Micro) -> int:
        return sum(index + 1 for index in micro)

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        total = torch.zeros(())
        for index in micro:
            x = float(index + 1)
            loss = (index + 1) * (self.weight.sum() * x - 3 * x).square()
            loss = loss * self.worse.get(index, 1.0)
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
    line: Line, plan: Sequence[StepPlan], work: Path, clip_norm: float = 1e9, guard: Guard | None = None, **changes: object
) -> tuple[Training, ListReporter]:
    reporter = ListReporter()
    values = {
        "objective": line,
        "plan": plan,
        "sharing": Replicated(Optimizer([Group("line", 0.1, {"weight": line.weight})]), Ranks()),
        "settings": Settings(Schedule.CONSTANT, 0, clip_norm, 3, guard or Guard()),
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


def saved(work: Path) -> list[int]:
    """Steps of the checkpoints, oldest first."""
    return [entry.step for entry in reversed(Folder(work).entries())]


def moved(training: Training, line: Line) -> list[float]:
    """Fills, while `training` runs, with the weight after each step that was taken."""
    weights: list[float] = []
    apply = training.sharing.optimizer.apply

    def remember(share: float) -> None:
        apply(share)
        weights.append(float(line.weight.detach()))

    training.sharing.optimizer.apply = remember  # type: ignore[method-assign]
    return weights


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (Line(bad_losses=[4]), "the loss is nan; records record-3, record-4;"),
        (Line(worse={4: math.inf}), "the loss is inf; records record-3, record-4;"),
        (Line(bad_gradients=[4]), r"the norm of its gradient (nan|inf); records record-1, record-2, record-3, record-4;"),
    ],
    ids=["loss nan", "loss inf", "gradient"],
)
def test_a_step_that_is_not_finite_is_not_taken_but_counted_and_told(tmp_path: Path, line: Line, says: str) -> None:
    plan: list[StepPlan] = [[[[0]]], [[[1, 2], [3, 4]]], [[[0]]]]
    training, reporter = training_of(line, plan, tmp_path)
    weights = moved(training, line)
    done = train(training)
    assert len(weights) == 2
    assert [row["step"] for row in reporter.rows] == [1, 2, 3]
    assert [row.get("skipped_steps") for row in reporter.rows] == [None, 1, 1]
    assert all(math.isfinite(value) for row in reporter.rows for value in row.values())
    assert re.search(f"step 2 of 3 not taken: .*{says} 1 not taken within 100 steps, 4 are allowed", reporter.notes[0])
    assert (done.num_skips, done.jumped) == (1, [])
    alone, _ = training_of(clean := Line(), [plan[0], plan[2]], tmp_path / "alone")
    assert moved(alone, clean) == []
    train(alone)
    assert float(clean.weight.detach()) == float(line.weight.detach())  # no trace of it: neither in weights nor in moments


def test_no_trace_of_a_step_remains_in_the_gradients(tmp_path: Path) -> None:
    line = Line(bad_gradients=[1])
    training, _ = training_of(line, [[[[1]]], [[[0]]]], tmp_path)
    assert train(training).num_skips == 1  # what was left of the first step would spoil the second
    assert math.isfinite(float(line.weight.detach()))


def test_a_spike_is_not_learned_from(tmp_path: Path) -> None:
    line = Line(worse={1: 1e4})
    plan: list[StepPlan] = [[[[0]]]] * 6 + [[[[1]]]] + [[[[0]]]] * 2
    training, reporter = training_of(line, plan, tmp_path, guard=Guard(window=8))
    weights = moved(training, line)
    assert train(training).num_skips == 1
    assert len(weights) == 8
    assert "robust standard deviations above the last 6; records record-1" in reporter.notes[0]


ROUND = Guard(window=8, spike=None, max_skips=2, skip_window=10)


def bad_stretch(bad: Sequence[int], length: int = 24) -> list[StepPlan]:
    """Steps of example 0, but of example 1, which has a bad loss, at the given places."""
    return [[[[1]]] if number in bad else [[[0]]] for number in range(length)]


def test_after_too_many_bad_steps_the_run_goes_round_them_once(tmp_path: Path) -> None:
    line = Line(bad_losses=[1])
    training, reporter = training_of(line, bad_stretch([8, 10, 11]), tmp_path / "a", guard=ROUND)
    done = train(training)
    assert done.jumped == [8, 12]
    assert [row["step"] for row in reporter.rows] == [*range(1, 13), 7, 8, *range(13, 25)]  # from the checkpoint after step 6
    assert reporter.notes[-1] == "back after step 6; steps 9 to 12 of 24 are left out from now on: records record-1"
    clean, _ = training_of(other := Line(), bad_stretch([], 20), tmp_path / "b")
    train(clean)
    # Step 10, between the bad ones, was good and is gone round as well: twenty steps in all.
    assert float(line.weight.detach()) == float(other.weight.detach())


@pytest.mark.parametrize("stop_at", [5, 10, 13, 15, 20])
def test_a_run_that_is_resumed_before_or_after_it_went_round_ends_the_same(tmp_path: Path, stop_at: int) -> None:
    ends = []
    for folder, stops in (("whole", []), ("stopped", [stop_at])):
        for stop in [*stops, None]:
            line = Line(bad_losses=[1])
            more = {"stop": stop_after(stop)} if stop else {}
            training, _ = training_of(line, bad_stretch([8, 10, 11]), tmp_path / folder, guard=ROUND, **more)
            if stop:
                with pytest.raises(PreemptedError):
                    train(training)
            else:
                done = train(training)
        ends.append((float(line.weight.detach()), done.jumped, done.num_skips))
    assert ends[0] == ends[1]


def test_forgetting_what_the_judge_knew_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, _ = training_of(Line(bad_losses=[1]), bad_stretch([8, 10, 11]), tmp_path, guard=ROUND, stop=stop_after(11))
    with pytest.raises(PreemptedError):
        train(training)
    monkeypatch.setattr(Judge, "__init__", lambda self, limits, state=None, make=Judge.__init__: make(self, limits))
    training, _ = training_of(Line(bad_losses=[1]), bad_stretch([8, 10, 11]), tmp_path, guard=ROUND)
    assert train(training).jumped == []


def test_a_second_bad_stretch_ends_the_run_with_the_ids(tmp_path: Path) -> None:
    line = Line(bad_losses=[1])
    training, _ = training_of(line, bad_stretch([8, 10, 11, 18, 19, 20]), tmp_path, guard=ROUND)
    with pytest.raises(
        DivergedError, match=r"step 21 of 24: the loss is nan; records record-1; 3 steps not taken \(19, 20, 21\)"
    ):
        train(training)
    assert saved(tmp_path), "the last checkpoint is kept"


def test_without_a_checkpoint_to_go_back_to_the_run_ends(tmp_path: Path) -> None:
    training, _ = training_of(Line(bad_losses=[1]), bad_stretch([0, 1, 2]), tmp_path, guard=ROUND)
    with pytest.raises(DivergedError, match="there is no checkpoint from before them") as caught:
        train(training)
    assert caught.value.exit_code == ExitCode.DIVERGED


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_a_step_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    training, reporter = training_of(Line(), [[[[0]]]] * 40, tmp_path)
    monkeypatch.setattr(manifest, "seal", full)
    monkeypatch.setattr(training.store, "save", lambda *a, save=training.store.save: (save(*a), training.store.close()))
    with pytest.raises(CannotWriteError, match="No space left"):
        train(training)
    assert len(reporter.rows) == 3  # it failed behind step 3, and step 4 is where all ranks hear of it


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
    assert saved(tmp_path / "a") == [2]
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


def test_the_age_of_the_checkpoint_grows_with_each_step_and_falls_where_one_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    class Slow(Line):
        def loss_sum(self, micro: Micro) -> torch.Tensor:
            training.store.settle()
            now[0] += 10.0
            return super().loss_sum(micro)

    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: now[0]))
    training, reporter = training_of(Slow(), [[[[0]]]] * 8, tmp_path)
    train(training)
    assert [row["checkpoint_age_seconds"] for row in reporter.rows] == [10, 20, 30, 10, 20, 30, 10, 20]  # one every 3 steps

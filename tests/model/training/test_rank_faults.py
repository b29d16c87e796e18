"""Faults on one of two ranks: gloo between two forked processes."""

from __future__ import annotations

import json
import math
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from model.config import Guard
from model.errors import BiovlmError, ExitCode
from model.training.places import Folder
from model.training.ranks import Ranks, ending_together
from model.training.reporter import ListReporter
from model.training.stops import asked_by_signal
from tests.fault_plan import Fault, FaultPlan, install
from tests.forks import forked
from tests.toy_run import STEPS, Toy, finish, toy_training

EVERY = 4


def attempt(folder: Path, plan: FaultPlan | None = None, world_size: int = 2, patience: float = 30.0, **more: Any) -> list[int]:
    """One attempt of the toy run with so many ranks: their exit codes. Each leaves `RANK.json` behind."""
    meet = folder / f"meet-{len(list(folder.glob('meet-*')))}"

    def act(rank: int) -> int:
        torch.set_num_threads(1)
        if plan is not None:
            install(plan.folder)
        if world_size > 1:
            distributed.init_process_group(
                "gloo", init_method=f"file://{meet}", rank=rank, world_size=world_size, timeout=timedelta(seconds=300)
            )
        reporter, answer = ListReporter(), {"digest": "", "letter": ""}
        code = 0
        with asked_by_signal() as stop:

            @ending_together
            def run() -> str:
                ranks = Ranks.current(torch.device("cpu"), patience)
                training, toy = toy_training(folder / "work", reporter, stop, ranks, every=EVERY, **more)
                digest = finish(training)
                answer["weights"] = [weight.flatten().tolist() for weight in toy.network.parameters()]
                answer["world_sizes"] = training.store.world_sizes
                return digest

            try:
                answer["digest"] = run()
            except BiovlmError as error:
                code, answer["letter"] = int(error.exit_code), error.message
        answer |= {"notes": reporter.notes, "rows": reporter.rows}
        (folder / f"{rank}.json").write_text(json.dumps(answer))
        return code

    return forked([lambda rank=rank: act(rank) for rank in range(world_size)])


def answers(folder: Path, world_size: int = 2) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    assert attempt(folder) == [0, 0]
    return answers(folder)[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_rank_stops_all_at_the_same_step_and_nothing_is_changed(
    tmp_path: Path, undisturbed: dict[str, Any], rank: int
) -> None:
    plan = FaultPlan(tmp_path, [Fault("sigterm twice", rank=rank, step=7)]).write()
    assert attempt(tmp_path, plan) == [ExitCode.PREEMPTED] * 2
    assert {answer["letter"] for answer in answers(tmp_path)} == {f"asked to stop; saved after step 7 of {STEPS}"}
    assert Folder(tmp_path / "work").entries()[0].step == 7
    assert attempt(tmp_path, plan) == [0, 0]
    plan.assert_all_fired()
    assert answers(tmp_path)[0]["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("kind", ["nan loss", "inf loss", "nan gradient"])
def test_what_is_not_finite_on_one_rank_is_left_out_by_all_in_the_same_step(tmp_path: Path, kind: str) -> None:
    plan = FaultPlan(tmp_path, [Fault(kind, rank=1, step=5)]).write()
    assert attempt(tmp_path, plan) == [0, 0]
    plan.assert_all_fired()
    leader, other = answers(tmp_path)
    assert leader["weights"] == other["weights"]
    assert leader["notes"] == other["notes"]  # in the toy both report
    assert [row.get("skipped_steps") for row in leader["rows"]] == [None] * 4 + [1] * (STEPS - 4)
    says = "records record-2, record-3;" if "loss" in kind else "records record-0, record-1, record-2, record-3;"
    assert f"step 5 of {STEPS} not taken" in leader["notes"][0]
    assert says in leader["notes"][0]


def test_bad_data_on_one_rank_rolls_all_back_and_round_it(tmp_path: Path) -> None:
    plan = FaultPlan(tmp_path, [Fault("nan loss", rank=1, step=step) for step in (9, 10)]).write()
    guard = Guard(max_skips=1, skip_window=5)
    assert attempt(tmp_path, plan, guard=guard) == [0, 0]
    plan.assert_all_fired()
    leader, other = answers(tmp_path)
    assert leader["weights"] == other["weights"]
    assert [row["step"] for row in leader["rows"]] == [*range(1, 11), *range(11, STEPS + 1)]
    assert leader["notes"][-1].startswith(f"back after step 8; steps 9 to 10 of {STEPS} are left out from now on: records")


def test_a_bit_that_flips_in_one_ranks_memory_ends_both_with_79_before_a_checkpoint_takes_it(tmp_path: Path) -> None:
    plan = FaultPlan(tmp_path, [Fault("flipped weight", rank=1, step=6)]).write()
    assert attempt(tmp_path, plan) == [ExitCode.DIVERGED] * 2
    plan.assert_all_fired()
    assert "weights or moments of rank 1 differ from those of rank 0" in answers(tmp_path)[0]["letter"]
    assert Folder(tmp_path / "work").entries()[0].step == 4
    assert attempt(tmp_path, plan) == [0, 0]


def test_a_rank_that_stands_still_is_ended_and_the_other_does_not_wait_for_ever(
    tmp_path: Path, undisturbed: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    plan = FaultPlan(tmp_path, [Fault("stall", rank=1, step=6)]).write()
    began = time.monotonic()
    assert attempt(tmp_path, plan, patience=2.0) == [ExitCode.INTERNAL] * 2
    assert time.monotonic() - began < 30  # not the ten minutes of the stall, nor the five of the group
    said = capfd.readouterr().err
    assert "fault_plan.py" in said, "the stack of the one that stood still"
    assert "this worker has stood still" in said
    assert (
        "rank 0 waited 2 s for the other workers, and one did not come" in json.loads((tmp_path / "0.json").read_text())["letter"]
    )
    assert attempt(tmp_path, plan) == [0, 0]
    assert answers(tmp_path)[0]["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_other_soon_with_70(tmp_path: Path, undisturbed: dict[str, Any], rank: int) -> None:
    plan = FaultPlan(tmp_path, [Fault("kill", rank=rank, step=6)]).write()
    codes = attempt(tmp_path, plan)
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, ExitCode.INTERNAL)
    assert "lost its connection to another worker" in json.loads((tmp_path / f"{1 - rank}.json").read_text())["letter"]
    assert attempt(tmp_path, plan) == [0, 0]
    plan.assert_all_fired()
    assert answers(tmp_path)[0]["digest"] == undisturbed["digest"]


def test_a_full_disk_on_rank_0_ends_both_with_73(tmp_path: Path) -> None:
    plan = FaultPlan(tmp_path, [Fault("full disk", step=4)]).write()
    assert attempt(tmp_path, plan) == [ExitCode.CANNOT_WRITE] * 2
    plan.assert_all_fired()


def test_two_workers_then_one_then_two_see_the_same_examples_in_every_step(
    tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example once an epoch, whoever computes it; the losses without dropout are those of two workers throughout."""
    monkeypatch.setattr(Toy, "__init__", _without_dropout(Toy.__init__))
    (tmp_path / "whole").mkdir()
    assert attempt(tmp_path / "whole") == [0, 0]
    for world_size, step in ((2, 6), (1, 13)):
        plan = FaultPlan(tmp_path / f"plan-{step}", [Fault("sigterm", step=step)]).write()
        assert attempt(tmp_path, plan, world_size) == [ExitCode.PREEMPTED] * world_size
    assert attempt(tmp_path) == [0, 0]
    found, whole = answers(tmp_path)[0], answers(tmp_path / "whole")[0]
    assert found["world_sizes"] == [[0, 2], [6, 1], [13, 2]]
    assert found["notes"] == ["2 workers go on where 1 stopped: every step holds the same examples, sums are in another order"]
    for row in found["rows"]:
        # Measured 2e-7: two sums of float32 in another order.
        assert math.isclose(row["loss"], whole["rows"][int(row["step"]) - 1]["loss"], rel_tol=1e-5)


def _without_dropout(make: Any) -> Any:
    def init(self: Toy, *args: Any, **more: Any) -> None:
        make(self, *args, **more)
        self.network[2].p = 0.0

    return init


def test_ranks_that_did_not_exist_draw_the_same_numbers_each_time(tmp_path: Path) -> None:
    """With dropout on the new rank: two resumptions from one checkpoint of one worker end alike."""
    plan = FaultPlan(tmp_path / "plan", [Fault("sigterm", step=6)]).write()
    (tmp_path / "a").mkdir()
    assert attempt(tmp_path / "a", plan, world_size=1) == [ExitCode.PREEMPTED]
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a" / "work").rglob("*"):
        target = tmp_path / "b" / path.relative_to(tmp_path / "a")
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    assert attempt(tmp_path / "a") == attempt(tmp_path / "b") == [0, 0]
    assert answers(tmp_path / "a")[0]["digest"] == answers(tmp_path / "b")[0]["digest"]

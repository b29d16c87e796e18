"""Faults by plan, in processes that really die: forked from this one, so that each costs milliseconds."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.config import Guard
from model.errors import BiovlmError, ExitCode, PreemptedError
from model.training.places import Folder
from model.training.reporter import ListReporter
from model.training.stops import asked_by_signal
from tests.fault_plan import BOUNDARIES, Fault, FaultPlan, drawn, install
from tests.forks import forked
from tests.model.tiny_stages import stop_after
from tests.toy_run import STEPS, finish, toy_training

EVERY = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    training, _ = toy_training(tmp_path_factory.mktemp("toy") / "work", every=EVERY)
    return finish(training)


class Marked(ListReporter):
    """Leaves the number of each finished step on the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def metrics(self, step: int, total: int, values: object) -> None:
        with self._path.open("a") as stream:
            stream.write(f"{step}\n")


def attempt(folder: Path, plan: FaultPlan | None = None, largest_file: int | None = None) -> int:
    """One attempt of the toy run in a child: its exit code. The digest of a finished run lies in `folder`."""

    def act() -> int:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        if plan is not None:
            install(plan.folder)
        with asked_by_signal() as stop:
            try:
                training, _ = toy_training(folder / "work", Marked(folder / "steps"), stop, every=EVERY)
                (folder / "digest").write_text(finish(training))
            except BiovlmError as error:
                (folder / "letter").write_text(str(error))
                return int(error.exit_code)
        return 0

    return forked([act])[0]


def saved(folder: Path) -> int:
    entries = Folder(folder / "work").entries()
    return entries[0].step if entries else 0


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_process_killed_anywhere_in_a_save_leaves_checkpoints_that_verify(
    tmp_path: Path, undisturbed: str, boundary: str
) -> None:
    plan = FaultPlan(tmp_path, [Fault("kill in save", step=12, boundary=boundary)]).write()
    assert attempt(tmp_path, plan) == -signal.SIGKILL
    plan.assert_all_fired()
    assert saved(tmp_path) == (12 if boundary in ("published", "purge") else 8)
    assert attempt(tmp_path, plan) == 0
    assert (tmp_path / "digest").read_text() == undisturbed
    assert not (tmp_path / "work" / "quarantine").exists()  # nothing that looked like a checkpoint was none


@pytest.mark.parametrize("kind", ["flipped byte", "truncated file"])
def test_a_checkpoint_damaged_behind_our_back_is_never_loaded(tmp_path: Path, undisturbed: str, kind: str) -> None:
    plan = FaultPlan(tmp_path, [Fault(kind, step=8)]).write()
    assert attempt(tmp_path, plan) == -signal.SIGKILL
    assert attempt(tmp_path, plan) == 0
    plan.assert_all_fired()
    assert (tmp_path / "digest").read_text() == undisturbed
    assert len(list((tmp_path / "work" / "quarantine").glob("*.txt"))) == 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [("full disk", ExitCode.CANNOT_WRITE), ("short write", ExitCode.REFUSED), ("lost store", ExitCode.INTERNAL)],
)
def test_a_save_that_fails_ends_the_run_with_its_letter_and_loses_nothing(
    tmp_path: Path, undisturbed: str, kind: str, code: ExitCode
) -> None:
    plan = FaultPlan(tmp_path, [Fault(kind, step=8)]).write()
    assert attempt(tmp_path, plan) == code
    assert "hint: " in (tmp_path / "letter").read_text()
    assert saved(tmp_path) == 4
    assert attempt(tmp_path, plan) == 0
    plan.assert_all_fired()
    assert (tmp_path / "digest").read_text() == undisturbed


@pytest.mark.parametrize("kind", ["sigterm", "sigterm twice", "sigterm in save"])
@pytest.mark.parametrize("step", [1, 6, 8, STEPS - 1])
def test_a_stop_saves_the_step_that_is_done_and_ends_with_75(tmp_path: Path, undisturbed: str, kind: str, step: int) -> None:
    plan = FaultPlan(tmp_path, [Fault(kind, step=step)]).write()
    stopped = attempt(tmp_path, plan)
    if (kind, step) != ("sigterm in save", STEPS - 1):  # there is no save so late
        assert stopped == ExitCode.PREEMPTED
        plan.assert_all_fired()
        steps = (tmp_path / "steps").read_text().split()
        assert saved(tmp_path) == int(steps[-1])
        assert attempt(tmp_path, plan) == 0
    assert (tmp_path / "digest").read_text() == undisturbed


@pytest.mark.parametrize(("largest_file", "steps"), [(3_000, (0,)), (4_500, (4, 5))], ids=["of the probe", "of a checkpoint"])
def test_a_file_that_the_system_does_not_let_grow_ends_the_run_with_73(
    tmp_path: Path, undisturbed: str, largest_file: int, steps: tuple[int, ...]
) -> None:
    """A limit of the operating system, not a patched function: the probe of 4 KiB, or the random numbers' 5 kB, do not fit."""
    assert attempt(tmp_path, largest_file=largest_file) == ExitCode.CANNOT_WRITE
    assert "hint: " in (tmp_path / "letter").read_text()
    done = (tmp_path / "steps").read_text().split() if (tmp_path / "steps").exists() else []
    assert (
        len(done) in steps
    )  # the writer failed behind step 4; step 5, at the latest 6, is where it is heard of, and not reported
    assert saved(tmp_path) == 0
    assert not list((tmp_path / "work").glob(".staging*"))
    assert attempt(tmp_path) == 0
    assert (tmp_path / "digest").read_text() == undisturbed


def test_a_stop_whose_checkpoint_cannot_be_written_does_not_say_that_it_was(tmp_path: Path) -> None:
    plan = FaultPlan(tmp_path, [Fault("sigterm", step=6), Fault("full disk", step=6)]).write()
    assert attempt(tmp_path, plan) == ExitCode.CANNOT_WRITE
    plan.assert_all_fired()
    assert saved(tmp_path) == 4


def test_a_stop_and_a_kill_right_after_it_leave_a_run_that_goes_on(tmp_path: Path, undisturbed: str) -> None:
    plan = FaultPlan(tmp_path, [Fault("sigterm", step=6), Fault("kill in save", step=6, boundary="seal")]).write()
    assert attempt(tmp_path, plan) == -signal.SIGKILL
    assert saved(tmp_path) == 4
    assert attempt(tmp_path, plan) == 0
    plan.assert_all_fired()
    assert (tmp_path / "digest").read_text() == undisturbed


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_a_run_ends_as_if_nothing_had_been(tmp_path: Path, undisturbed: str, seed: int) -> None:
    plan = drawn(tmp_path, seed, ["kill", "kill in save"], ranks=1, steps=STEPS - 4, count=4)
    print(f"seed {seed}")
    codes = [attempt(tmp_path, plan)]
    while codes[-1] == -signal.SIGKILL:
        done = max(map(int, (tmp_path / "steps").read_text().split()), default=0) if (tmp_path / "steps").exists() else 0
        assert done - saved(tmp_path) <= 2 * EVERY, f"seed {seed}"
        codes.append(attempt(tmp_path, plan))
    assert codes[-1] == 0
    assert (tmp_path / "digest").read_text() == undisturbed, f"seed {seed}"


def test_a_fault_that_did_not_happen_is_seen(tmp_path: Path) -> None:
    plan = FaultPlan(tmp_path, [Fault("kill", rank=3, step=2)], seed=5).write()
    assert attempt(tmp_path, plan) == 0
    with pytest.raises(AssertionError, match=r"did not happen: .*rank=3.*seed 5"):
        plan.assert_all_fired()


@pytest.mark.parametrize("kind", ["nan loss", "inf loss", "nan gradient", "spike"])
def test_a_bad_step_leaves_the_weights_as_they_were(tmp_path: Path, kind: str) -> None:
    plan = FaultPlan(tmp_path, [Fault(kind, step=STEPS)]).write()

    def weights(name: str, stop: Callable[[], bool]) -> int:
        install(plan.folder)
        training, toy = toy_training(tmp_path / name, stop=stop, every=EVERY, guard=Guard(window=16))
        with contextlib.suppress(PreemptedError):
            assert finish(training)
        (tmp_path / f"{name}.txt").write_text(str([weight.tolist() for weight in toy.network.parameters()]))
        return 0

    assert forked([lambda: weights("before", stop_after(STEPS - 1))]) == [0]  # ends before the last step
    assert plan.fired() == [False]
    assert forked([lambda: weights("after", lambda: False)]) == [0]
    plan.assert_all_fired()
    assert (tmp_path / "before.txt").read_text() == (tmp_path / "after.txt").read_text()

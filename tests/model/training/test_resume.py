from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model import manifest
from model.architecture import tensors
from model.errors import CannotWriteError, ConfigError, InternalError, MissingInputError, RefusedError
from model.training import resume
from model.training.optimizer import Group, Optimizer
from model.training.places import Entry, Folder
from model.training.ranks import Ranks
from model.training.reporter import ListReporter
from model.training.resume import Resumed, Store, differences
from model.training.sharing import Replicated


def learner_at(value: float) -> Replicated:
    weight = nn.Parameter(torch.full((2, 3), value))
    optimizer = Optimizer([Group("part", 0.1, {"weight": weight})])
    weight.grad = torch.ones_like(weight)
    optimizer.apply(1.0)
    return Replicated(optimizer, Ranks())


def store_of(work: Path, reporter: ListReporter | None = None, ranks: Ranks | None = None, **configuration: object) -> Store:
    return Store(work, configuration or {"rate": 1}, ranks or Ranks(), reporter or ListReporter(), patience_seconds=20)


def begun(work: Path, reporter: ListReporter | None = None) -> Store:
    """A store that goes on from what is there."""
    store = store_of(work, reporter)
    store.resume(learner_at(0.0))
    return store


def saved(store: Store, step: int, value: float | None = None, **more: object) -> None:
    store.save(step, learner_at(float(step) if value is None else value), **more)
    store.settle()


def value_of(learner: Replicated) -> float:
    return float(learner.weights["weight"].detach()[0, 0])


def names(work: Path) -> list[str]:
    return [entry.name for entry in Folder(work).entries()]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Checkpoints of steps 2 and 3; that of step 1 has been removed."""
    store = begun(tmp_path / "work")
    for step in (1, 2, 3):
        saved(store, step)
    return tmp_path / "work"


NEWEST, BEFORE = "attempt-000001/step-000003", "attempt-000001/step-000002"


def test_the_newest_two_are_kept(work: Path) -> None:
    assert names(work) == [NEWEST, BEFORE]


def test_weights_moments_journal_and_random_numbers_come_back(work: Path) -> None:
    torch.manual_seed(11)
    written, store = learner_at(9.0), begun(work)
    torch.manual_seed(12)
    store.save(4, written, {"window": [0.1, 1 / 3]})
    expected = torch.rand(3)
    store.settle()
    fresh = learner_at(0.0)
    assert store_of(work).resume(fresh) == Resumed(4, {"window": [0.1, 1 / 3]})
    assert torch.equal(torch.rand(3), expected)
    assert value_of(fresh) == value_of(written)
    assert all(torch.equal(tensor, fresh.state()[1][name]) for name, tensor in written.state()[1].items())
    for learner in (written, fresh):  # the next step is the same as well: the moments are really in use
        learner.weights["weight"].grad = torch.full((2, 3), 0.3)
        learner.optimizer.apply(0.5)
    assert value_of(fresh) == value_of(written)


def test_a_checkpoint_holds_the_state_at_its_boundary_though_steps_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, learner, write, may_write = begun(work), learner_at(9.0), tensors.write, threading.Event()
    before = value_of(learner)
    monkeypatch.setattr(tensors, "write", lambda path, values: (may_write.wait(20), write(path, values)))
    store.save(4, learner)
    learner.optimizer.apply(1.0)  # the step after, while nothing is written yet
    assert value_of(learner) != before
    assert names(work)[0] == NEWEST
    may_write.set()
    store.settle()
    fresh = learner_at(0.0)
    assert store_of(work).resume(fresh).step == 4
    assert value_of(fresh) == before


def flip(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def poison(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        record = manifest.read(folder)
        with manifest.commit(folder, record.kind, facts=record.facts) as aside:
            shutil.copytree(folder, aside, dirs_exist_ok=True)
            (aside / "manifest.json").unlink()
            values = tensors.read(aside / name)
            tensors.write(aside / name, {key: value * float("nan") for key, value in values.items()})

    return act


DAMAGES: dict[str, Callable[[Path], None]] = {
    "one bit flipped": flip,
    "cut": lambda folder: (folder / "weights.safetensors").write_bytes(b"abc"),
    "empty": lambda folder: (folder / "rng.safetensors").write_bytes(b""),
    "file missing": lambda folder: (folder / "rng.safetensors").unlink(),
    "file added": lambda folder: (folder / "extra").write_bytes(b""),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "bad manifest": lambda folder: (folder / "manifest.json").write_text('{"kind": '),
    "a manifest alone": lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
    "weights not finite": poison("weights.safetensors"),
    "moments not finite": poison("optimizer.safetensors"),
    "of another step": lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.with_name("step-000002"), folder)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_checkpoint_goes_to_the_quarantine_and_the_one_before_is_used(work: Path, damage: Callable[[Path], None]) -> None:
    damage(work / NEWEST)
    reporter, fresh = ListReporter(), learner_at(0.0)
    assert store_of(work, reporter).resume(fresh).step == 2
    assert value_of(fresh) == value_of(learner_at(2.0))
    assert names(work) == [BEFORE]
    assert (work / "quarantine" / "attempt-000001-step-000003").is_dir()
    reason = (work / "quarantine" / "attempt-000001-step-000003.txt").read_text().strip()
    assert reporter.notes == [f"checkpoint {NEWEST} set aside: {reason}"]


def test_with_only_bad_checkpoints_nothing_starts_from_zero_and_nothing_is_deleted(work: Path) -> None:
    flip(work / BEFORE)
    flip(work / NEWEST)
    for _ in range(2):  # also not at the second attempt, when both have been set aside
        with pytest.raises(
            MissingInputError, match=r"step-000002: .*SHA-256.*; .*step-000003: .*|step-000003: .*; .*step-000002: "
        ):
            store_of(work).resume(learner_at(0.0))
    kept = sorted(path.name for path in (work / "quarantine").iterdir() if path.is_dir())
    assert kept == ["attempt-000001-step-000002", "attempt-000001-step-000003"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes(work: Path) -> None:
    shutil.copytree(work / NEWEST, work / ".staging-attempt-000001-step-000004-1234abcd")
    assert store_of(work).resume(learner_at(0.0)).step == 3
    assert not list(work.glob(".staging*"))


def test_another_configuration_is_refused_field_by_field(work: Path) -> None:
    with pytest.raises(ConfigError, match="2 fields differ: other: None -> 5; rate: 1 -> 2"):
        store_of(work, rate=2, other=5).resume(learner_at(0.0))
    assert names(work) == [NEWEST, BEFORE]


def test_differences_name_the_leaves() -> None:
    assert differences({"a": {"b": [1], "c": 2}}, {"a": {"b": [2], "c": 2}}) == ["a.b: [1] -> [2]"]


def fail(number: int) -> Callable[..., None]:
    def act(*_: object, **__: object) -> None:
        raise OSError(number, "No space left on device" if number == errno.ENOSPC else "Input/output error")

    return act


def test_a_full_disk_leaves_the_checkpoints_before_and_the_steps_hear_of_it(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, name in ((tensors, "write"), (manifest, "seal"), (manifest, "publish")):  # at write, at fsync, at rename
        store = begun(work)
        monkeypatch.setattr(target, name, fail(errno.ENOSPC))
        store.save(4, learner_at(4.0))
        store.close()
        assert store.failing
        with pytest.raises(CannotWriteError, match="No space left"):
            store.settle()
        monkeypatch.undo()
        assert names(work) == [NEWEST, BEFORE]
        assert not list(work.glob(".staging*"))
    assert store_of(work).resume(learner_at(0.0)).step == 3


def test_a_file_that_came_out_shorter_is_seen_before_it_counts(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tensors.write

    def short(path: Path, values: object) -> None:
        write(path, values)
        path.write_bytes(path.read_bytes()[:-1])

    store = begun(work)
    monkeypatch.setattr(tensors, "write", short)
    store.save(4, learner_at(4.0))
    with pytest.raises(RefusedError, match="not a safetensors file"):
        store.settle()
    assert names(work) == [NEWEST, BEFORE]


def test_a_place_that_takes_no_bytes_is_found_out_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for work in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CannotWriteError):
            store_of(work).resume(learner_at(0.0))
    monkeypatch.setattr(manifest, "write_durably", fail(errno.ENOSPC))
    with pytest.raises(CannotWriteError, match="No space"):
        store_of(tmp_path / "full").resume(learner_at(0.0))


def test_a_store_that_does_not_answer_ends_the_wait(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    store = Store(work, {"rate": 1}, Ranks(), ListReporter(), patience_seconds=0.05)
    store.resume(learner_at(0.0))
    monkeypatch.setattr(tensors, "write", lambda path, values: never.wait(20))
    store.save(4, learner_at(4.0))
    with pytest.raises(InternalError, match=r"under way to .* for more than 0 s"):
        store.settle()
    never.set()


def test_at_most_one_checkpoint_is_in_flight(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write, running, most = begun(work), tensors.write, [0], [0]

    def counted(path: Path, values: object) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        write(path, values)
        running[0] -= 1

    monkeypatch.setattr(tensors, "write", counted)
    for step in range(4, 12):
        store.save(step, learner_at(4.0))
    store.settle()
    assert most == [1]
    assert names(work) == ["attempt-000002/step-000011", "attempt-000002/step-000010"]


def test_an_attempt_that_was_asleep_can_neither_commit_nor_purge(work: Path) -> None:
    asleep, awake = begun(work), begun(work)
    saved(awake, 4)
    asleep.save(4, learner_at(-1.0))
    with pytest.raises(RefusedError, match=r"attempt 2 of the run in .* may no longer write there: attempt 3 has begun"):
        asleep.settle()
    with pytest.raises(RefusedError):
        asleep.place.remove(Entry(4, 3), 2)
    assert names(work) == ["attempt-000003/step-000004", NEWEST]
    fresh = learner_at(0.0)
    store_of(work).resume(fresh)
    assert value_of(fresh) == value_of(learner_at(4.0))


def test_an_attempt_whose_run_was_finished_elsewhere_brings_nothing_back(work: Path) -> None:
    asleep = begun(work)
    begun(work).clear()
    asleep.save(4, learner_at(4.0))
    with pytest.raises(RefusedError, match="removed since"):
        asleep.settle()
    assert not work.exists()


def test_what_cannot_be_removed_is_a_note_and_no_failure(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = ListReporter()
    store = begun(work, reporter)
    monkeypatch.setattr(store.place, "remove", fail(errno.EIO))
    saved(store, 4)
    assert reporter.notes == [f"cannot remove {BEFORE}: Input/output error"]
    assert names(work)[0] == "attempt-000002/step-000004"


def test_a_verified_checkpoint_exists_at_every_instant(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before and after whatever changes a name."""
    store, verified = begun(work), []

    def looking(act: Callable[..., None]) -> Callable[..., None]:
        def around(*args: object) -> None:
            for step in (lambda: None, lambda: act(*args)):
                step()
                verified.append(sum(bool(manifest.verify(work / name)) for name in names(work)))

        return around

    monkeypatch.setattr(manifest, "publish", looking(manifest.publish))
    monkeypatch.setattr(store.place, "remove", looking(store.place.remove))
    monkeypatch.setattr(resume, "KEPT", 1)
    for step in (4, 5, 6):
        saved(store, step)
    assert len(verified) >= 12
    assert min(verified) >= 1
    assert names(work) == ["attempt-000002/step-000006"]


def test_one_rolls_back_to_a_calm_checkpoint_before_the_step_and_forgets_what_came_after(work: Path) -> None:
    store = begun(work)
    for step in (4, 5, 6):
        saved(store, step, calm=False)
    assert names(work)[-1] == NEWEST  # calm, and kept for this
    fresh = learner_at(0.0)
    assert store.back_to(5, fresh) == Resumed(3, {})
    assert value_of(fresh) == value_of(learner_at(3.0))
    assert names(work) == [NEWEST]
    saved(store, 4)
    assert names(work)[0] == "attempt-000003/step-000004"
    assert store.back_to(2, fresh).step == 0


def test_another_number_of_workers_goes_on_and_is_told(work: Path) -> None:
    """The states of random numbers that there are come back; that of a new rank follows from configuration, step and rank."""
    reporter, drawn = ListReporter(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        store = store_of(work, reporter)
        store._ranks = Pretended(1, 2)
        assert store.resume(learner_at(0.0)).step == 3
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert store.world_sizes == [[0, 1], [3, 2]]
    assert reporter.notes[0].startswith("2 workers go on where 1 stopped")


class Pretended(Ranks):
    """One of several ranks, with what rank 0 would say."""

    def together(self, act: Callable[[], int]) -> int:
        return act()

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model import manifest
from model.architecture import tensors
from model.errors import CannotWriteError, ConfigError, MissingInputError
from model.training.optimizer import Group, Optimizer
from model.training.ranks import Ranks
from model.training.reporter import ListReporter
from model.training.resume import Store, differences
from model.training.sharing import Replicated


def learner_at(value: float) -> Replicated:
    weight = nn.Parameter(torch.full((2, 3), value))
    optimizer = Optimizer([Group("part", 0.1, {"weight": weight})])
    weight.grad = torch.ones_like(weight)
    optimizer.apply(1.0)
    return Replicated(optimizer, Ranks())


def store_of(work: Path, reporter: ListReporter | None = None, **configuration: object) -> Store:
    return Store(work, configuration or {"rate": 1}, Ranks(), reporter or ListReporter())


def value_of(learner: Replicated) -> float:
    return float(learner.weights["weight"].detach()[0, 0])


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Checkpoints of steps 2 and 3; that of step 1 has been removed."""
    for step in (1, 2, 3):
        store_of(tmp_path / "work").save(step, learner_at(float(step)))
    return tmp_path / "work"


def test_the_newest_two_are_kept(work: Path) -> None:
    assert sorted(path.name for path in work.iterdir()) == ["step-000002", "step-000003"]


def test_weights_moments_and_random_numbers_come_back(work: Path) -> None:
    torch.manual_seed(11)
    saved = learner_at(9.0)
    store_of(work).save(4, saved)
    expected = torch.rand(3)
    fresh = learner_at(0.0)
    assert store_of(work).resume(fresh) == 4
    assert torch.equal(torch.rand(3), expected)
    assert value_of(fresh) == value_of(saved)
    assert all(torch.equal(tensor, fresh.state()[1][name]) for name, tensor in saved.state()[1].items())
    for learner in (saved, fresh):  # the next step is the same as well: the moments are really in use
        learner.weights["weight"].grad = torch.full((2, 3), 0.3)
        learner.optimizer.apply(0.5)
    assert value_of(fresh) == value_of(saved)


def flip(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def poison(folder: Path) -> None:
    record = manifest.read(folder)
    with manifest.commit(folder, record.kind, facts=record.facts) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        (aside / "manifest.json").unlink()
        weights = tensors.read(aside / "weights.safetensors")
        tensors.write(aside / "weights.safetensors", {name: weight * float("nan") for name, weight in weights.items()})


DAMAGES: dict[str, Callable[[Path], None]] = {
    "one bit flipped": flip,
    "cut": lambda folder: (folder / "weights.safetensors").write_bytes(b"abc"),
    "empty": lambda folder: (folder / "rng.safetensors").write_bytes(b""),
    "file missing": lambda folder: (folder / "rng.safetensors").unlink(),
    "file added": lambda folder: (folder / "extra").write_bytes(b""),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "bad manifest": lambda folder: (folder / "manifest.json").write_text('{"kind": '),
    "not finite": poison,
    "of another step": lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.with_name("step-000002"), folder)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_checkpoint_is_set_aside_and_the_one_before_is_used(work: Path, damage: Callable[[Path], None]) -> None:
    damage(work / "step-000003")
    reporter, fresh = ListReporter(), learner_at(0.0)
    assert store_of(work, reporter).resume(fresh) == 2
    assert value_of(fresh) == value_of(learner_at(2.0))
    assert sorted(path.name for path in work.iterdir()) == ["bad-step-000003", "step-000002"]
    assert reporter.notes[0].startswith("checkpoint step-000003 set aside as bad-step-000003: ")


def test_with_only_bad_checkpoints_nothing_starts_from_zero(work: Path) -> None:
    flip(work / "step-000002")
    flip(work / "step-000003")
    for _ in range(2):  # also not at the second attempt, when both have been set aside
        with pytest.raises(MissingInputError, match=r"step-000002.*; .*step-000003|step-000003.*; .*step-000002"):
            store_of(work).resume(learner_at(0.0))
    assert sorted(path.name for path in work.iterdir()) == ["bad-step-000002", "bad-step-000003"]


def test_what_a_killed_writer_left_is_no_checkpoint(work: Path) -> None:
    shutil.copytree(work / "step-000003", work / ".step-000004.1234abcd.tmp")
    assert store_of(work).resume(learner_at(0.0)) == 3
    assert not list(work.glob(".*"))


def test_another_configuration_is_refused_field_by_field(work: Path) -> None:
    with pytest.raises(ConfigError, match="2 fields differ: other: None -> 5; rate: 1 -> 2"):
        store_of(work, rate=2, other=5).resume(learner_at(0.0))


def test_differences_name_the_leaves() -> None:
    assert differences({"a": {"b": [1], "c": 2}}, {"a": {"b": [2], "c": 2}}) == ["a.b: [1] -> [2]"]


def test_a_full_disk_leaves_the_checkpoints_before(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "write", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        store_of(work).save(4, learner_at(4.0))
    monkeypatch.undo()
    assert store_of(work).resume(learner_at(0.0)) == 3
    assert sorted(path.name for path in work.iterdir()) == ["step-000002", "step-000003"]

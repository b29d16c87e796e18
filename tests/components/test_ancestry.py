"""What a version was made of, laid out again: without a training. That one makes the same bytes is a lane (tests/pipelines)."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from components.data import step as data_step
from components.platform import code, reference
from components.platform.settings import Settings
from components.platform.store import open_store
from model import manifest
from model import recipe as recipes
from model.config import Recipe
from model.errors import MissingInputError, RefusedError
from pipelines import reproduce
from pipelines.reproduce import Compared
from tests.components.published import publish
from tests.components.trainer import Trainer
from tests.pipelines import micro

TOWER = {"tower": {"source": "registry:mini-tower"}, "language": {"source": "registry:mini-language"}}
RECIPE = micro.recipe(model=TOWER, seed=3)


def base(word):
    """A base model that is a word."""

    def make(folder):
        with manifest.commit(folder, "base") as aside:
            (aside / "weights").write_text(word)

    return make


@pytest.fixture
def original(store, tmp_path):
    """A version whose data set and base model have newer versions since."""
    publish(store, base("old"), "mini-tower")
    publish(store, base("words"), "mini-language")
    publish(store, micro.write_set)
    Trainer(store, tmp_path).train(RECIPE)
    publish(store, lambda folder: micro.write_set(folder, (("train", 18), ("test", 6))))
    publish(store, base("new"), "mini-tower")
    return reproduce.gather(store, "models:/micro/1")


def test_the_recipe_comes_back_from_the_slices_of_the_steps(original):
    found = Recipe.model_validate(reproduce.ancestry.recipe(original.records, original.data["sets"]))
    was, now = recipes.slices(RECIPE), recipes.slices(found)
    for name in ("align", "instruct", "task", "evaluate"):
        assert recipes.key_content(now[name]) == recipes.key_content(was[name])
    assert found.data.sets["mini"].revision == original.data["sets"]["mini"]["revision"] != "HEAD"


def test_data_and_base_models_are_laid_as_they_stood_and_the_data_step_makes_the_same_bytes(
    original, store, tmp_path, monkeypatch
):
    rebuilt = reproduce.rebuild(original, store, tmp_path / "again")
    assert rebuilt.code == code.ROOT
    monkeypatch.setenv("BIOVLM_HOME", str(rebuilt.home))
    monkeypatch.setenv("BIOVLM_DATA", rebuilt.registry.as_uri())
    recipe = Recipe.model_validate_json(rebuilt.recipe.read_text())
    data_step.run(json.dumps(recipes.slices(recipe)["data"]), str(tmp_path / "data.json"))
    made = reference.read(tmp_path / "data.json", Settings.from_environment().store)
    assert made.folder.is_relative_to(rebuilt.home)
    assert made.digest == original.artifacts["data"][1]


def test_records_that_contradict_each_other_are_refused(original, store):
    """What all stages of a run have in common stands in one record differently: no run can be made of these."""
    record = original.records["task"]
    open_store(store).write_record(record.model_copy(update={"piece": {**record.piece, "seed": 4}}))
    with pytest.raises(RefusedError, match="seed is 3 in align, 3 in instruct, 4 in task"):
        reproduce.gather(store, "models:/micro/1")


def test_each_missing_input_is_named(original, store, tmp_path):
    shutil.rmtree(store.store / "data")
    other = {name: record.model_copy(update={"code": "0" * 64}) for name, record in original.records.items()}
    with pytest.raises(MissingInputError) as caught:
        reproduce.rebuild(dataclasses.replace(original, records=other), store, tmp_path / "again")
    assert "4 inputs are missing" in caught.value.message
    for name in ("data set mini at ", "base model mini-tower at ", "base model mini-language at ", "the code of its steps"):
        assert name in caught.value.message


def test_a_version_without_records_says_which_are_gone(original, store):
    for path in (store.store / "steps" / "train").glob("*.json"):
        path.unlink()
    with pytest.raises(MissingInputError, match="no record of align, instruct, task"):
        reproduce.gather(store, "models:/micro/1")


def checkpoint(folder, weight):
    with manifest.commit(folder, "checkpoint") as aside:
        save_file({"a": torch.tensor([2.0, weight])}, str(aside / "adapter.safetensors"))
    return folder


def report(folder, accuracy):
    facts = {"benchmarks": {"vqa/mini/test": {"closed_accuracy": accuracy, "items": 20}}}
    with manifest.commit(folder, "report", facts=facts) as aside:
        (aside / "report.json").write_text(str(accuracy))
    return folder


def test_what_differs_is_measured(store, tmp_path):
    there = open_store(store)
    here = reproduce.Store(tmp_path / "again")
    pairs = {}
    for name, make, values in (("steps/train/a", checkpoint, (1.0, 1.01)), ("steps/evaluate/b", report, (0.8, 0.81))):
        make(there.root / name, values[0])
        pairs[name] = reproduce._compared(
            name, there, name, manifest.read(there.root / name).digest, here, make(here.root / name, values[1])
        )
    assert pairs["steps/train/a"].files == ("adapter.safetensors",)
    assert pairs["steps/train/a"].apart == pytest.approx(0.005, rel=1e-3)
    assert pairs["steps/evaluate/b"].figures == {"closed_accuracy": pytest.approx(0.01)}
    assert not pairs["steps/train/a"].equal


SAME = Compared("data", "a", "a")
OTHER = Compared("task", "a", "b", ("adapter.safetensors",), 0.001)


def near(value):
    return Compared("evaluate", "a", "b", ("report.json",), None, {"closed_accuracy": value})


def test_equal_bytes_are_said_so_and_others_only_pass_on_another_kind_of_machine_and_within_the_tolerance(original):
    assert "equal to the bit: 1 artifacts" in reproduce.judge(original, [SAME], [], 0.02)
    text = reproduce.judge(original, [SAME, OTHER, near(0.01)], ["torch 2.12 -> 2.13"], 0.02)
    assert "within 0.02 in every key figure; bits differ in task, evaluate" in text
    assert "torch 2.12 -> 2.13" in text
    with pytest.raises(RefusedError, match="on the same kind of machine"):
        reproduce.judge(original, [SAME, OTHER, near(0.01)], [], 0.02)
    for far in (0.03, float("inf")):
        with pytest.raises(RefusedError, match="closed_accuracy by "):
            reproduce.judge(original, [SAME, OTHER, near(far)], ["torch 2.12 -> 2.13"], 0.02)


def test_another_library_is_another_kind_of_machine(original):
    task = original.records["task"]
    older = task.model_copy(update={"versions": task.versions | {"torch": "1.0"}})
    changed = dataclasses.replace(original, records={**original.records, "task": older})
    assert any(line.startswith("torch 1.0 -> ") for line in reproduce.differences_of_machine(changed))

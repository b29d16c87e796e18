"""Recipes: complete, strict, and cut into slices that change only when their step must run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import recipe
from model.config import Kind, Part, Recipe
from model.errors import ConfigError

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"


def load(*overrides: str) -> Recipe:
    return recipe.load("tiny", RECIPES, overrides)


def test_every_recipe_that_comes_with_biovlm_is_valid() -> None:
    for name in recipe.names(RECIPES):
        assert recipe.load(name, RECIPES).seed >= 0


def test_a_trial_changes_one_value_and_leaves_the_others() -> None:
    changed = load("stages.task.epochs=7", "seed=3")
    assert changed.stages.task.epochs == 7
    assert changed.seed == 3
    assert changed.stages.align == load().stages.align


def test_a_recipe_that_extends_another_merges_field_by_field(tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text("extends: tiny\nname: child\nstages: {task: {epochs: 9}}\n")
    child = recipe.load(str(tmp_path / "child.yaml"), RECIPES)
    assert (child.name, child.stages.task.epochs) == ("child", 9)
    assert child.stages.task.lora == load().stages.task.lora


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    with pytest.raises(ConfigError, match="circle"):
        recipe.load("a", tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.task.epoch=2", ("unknown key `stages.task.epoch`", "did you mean `epochs`")),
        ("model.towr={}", ("unknown key `model.towr`", "did you mean `tower`")),
        ("stages.task.epochs=many", ("stages.task.epochs", "'many'")),
        ("stages.task.lora=null", ("language_lora", "lora")),
        ("stages.align.lora={rank: 4}", ("lora", "does not name language_lora")),
        ("stages.task.learning_rates={connector: 0.1}", ("learning_rates", "must be the same")),
        ("stages.task.micro_batch_tokens=999999", ("999,999",)),
        ("evaluation.benchmarks=[{set: slake}]", ("slake", "phantom")),
        ("model.tower.config={}", ("either `source` or `config`",)),
        ("model.template=llama4", ("llama3",)),
        ("nonsense", ("--set", "nonsense")),
        ("stages.task.lora={rank: 1, rank: 2}", ("--set", "'rank' stands twice")),
    ],
)
def test_a_wrong_recipe_is_told_with_field_values_and_way_out(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_an_unknown_recipe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean `tiny`"):
        recipe.load("tinny", RECIPES)


def test_broken_yaml_is_told_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nstages: [1, 2\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:\d"):
        recipe.load(str(tmp_path / "bad.yaml"), RECIPES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"extends: tiny\nseed: 1\nseed: 2\n", r"odd\.yaml:3: not YAML: the key 'seed' stands twice"),
        (b"stages:\n\ttask: 1\n", r"odd\.yaml:2: not YAML: found character '\\t'"),
        (b"\xff\xfename", r"odd\.yaml: byte 0 is not UTF-8"),
        (b"a: " + 3000 * b"[", r"odd\.yaml: not YAML: nested too deeply"),
        (b"seed: 2020-13-45\n", r"odd\.yaml: not YAML: month must be in 1\.\.12"),
        (b"seed: 1\x00", r"odd\.yaml: not YAML: unacceptable character"),
        (b"", r"odd\.yaml: a recipe is a mapping of fields"),
        (b"extends: tinny\n", r"odd\.yaml: extends: unknown recipe 'tinny'; did you mean `tiny`"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_one_line_with_its_place(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        recipe.load(str(tmp_path / "odd.yaml"), RECIPES)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_folder_is_no_recipe_and_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"):
        recipe.load(str(tmp_path), RECIPES)


def test_a_complaint_about_a_trial_names_the_trial_and_not_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^--set stages\.task\.epochs: stages\.task\.epochs: .* given 'many'"):
        load("seed=3", "stages.task.epochs=many")


def test_a_change_of_the_task_recipe_leaves_the_slices_of_the_earlier_steps() -> None:
    before, after = recipe.slices(load()), recipe.slices(load("stages.task.epochs=5"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"task", "register"}


def test_memory_and_processors_are_not_in_a_key_but_the_number_of_workers_is() -> None:
    def key(*overrides: str) -> dict[str, Any]:
        return recipe.key_content(recipe.slices(load(*overrides))["align"])

    assert key("resources.memory_gib=64", "resources.cpus_per_worker=8") == key()
    assert key("resources.workers=2") != key()


def test_the_digest_follows_every_value() -> None:
    assert recipe.digest(load()) == recipe.digest(load())
    assert recipe.digest(load()) != recipe.digest(load("stages.align.warmup=0.1"))


def test_slices_are_plain_json_and_read_back_equal() -> None:
    for piece in recipe.slices(load()).values():
        assert json.loads(json.dumps(piece)) == piece


def test_a_recipe_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 1  # type: ignore[misc]


def test_the_schema_for_editors_names_every_choice() -> None:
    schema = recipe.json_schema()
    assert set(schema["$defs"]["Kind"]["enum"]) == set(Kind)
    assert set(schema["$defs"]["Part"]["enum"]) == set(Part)
    assert "extends" in schema["properties"]

"""Preflight finds what would fail later, and says it in one letter."""

from __future__ import annotations

import json

import pytest

from components.platform import reference
from components.platform.retraining.question import Question
from components.preflight import step as preflight
from model import recipe
from model.errors import ConfigError
from tests.pipelines import micro


@pytest.fixture
def check(store, tmp_path, happened):
    """Run preflight; its slices, or the letter it ended with."""

    def run(text):
        try:
            return preflight.run(text, str(tmp_path / "champion.json"))
        except SystemExit:
            return happened(types_only=False)[-1]

    return run


def test_each_step_gets_its_slice_and_numbers_keep_their_type(check, tmp_path):
    slices = check(micro.recipe().model_dump_json())
    expected = recipe.slices(micro.recipe())
    assert {name: json.loads(getattr(slices, name)) for name in expected} == expected
    assert isinstance(json.loads(slices.align)["seed"], int)
    assert reference.read(tmp_path / "champion.json", tmp_path).is_none
    assert len(slices.tracking) == 32


POLICY = {"name": "monthly", "recipe": "micro", "when": {"cron": "0 3 1 * *"}, "budget": {"gpu_hours": 40}}


def test_a_scheduled_run_asks_whether_to_train_again_and_another_does_not(store, tmp_path, happened):
    def question(policy):
        return preflight.run(micro.recipe().model_dump_json(), str(tmp_path / "champion.json"), "", policy).question

    found = Question.model_validate_json(question(json.dumps(POLICY)))
    assert (found.policy.name, found.facts.basis, found.facts.asked_by_schedule) == ("monthly", None, True)
    assert found.facts.now.recipe.keys() == {"align", "instruct", "task"}
    assert question("") == ""
    with pytest.raises(SystemExit):
        question('{"name": "monthly"}')
    assert (happened(types_only=False)[-1].exit_code, happened(types_only=False)[-1].message[:17]) == (78, "the run's policy:")


def test_an_invalid_recipe_ends_with_78_and_names_the_field(check):
    content = json.loads(micro.recipe().model_dump_json())
    content["stages"]["task"]["epochs"] = -1
    letter = check(json.dumps(content))
    assert (letter.exit_code, "stages.task.epochs" in letter.message) == (78, True)


def test_a_missing_library_ends_with_66(check, monkeypatch):
    monkeypatch.setattr(preflight, "LIBRARIES", ("json", "no_such_library"))
    letter = check(micro.recipe().model_dump_json())
    assert (letter.exit_code, letter.message) == (66, "not installed: no_such_library")


def test_a_base_model_whose_folder_is_gone_is_told_before_anything_is_made_ready(check):
    tower = {"source": "/nowhere/tower"}
    letter = check(micro.recipe(model={"tower": tower}).model_dump_json())
    assert (letter.exit_code, letter.message) == (66, "no folder /nowhere/tower for a base model")


@pytest.mark.parametrize(
    ("licence", "purpose", "code"),
    [
        ("CC-BY-NC-4.0", "commercial", 77),
        ("llama3", "commercial", None),
        ("PhysioNet Credentialed", "sharing", 77),
        ("CC-BY-NC-4.0", "research", None),
        ("unknown", "research", 77),
    ],
)
def test_a_licence_that_forbids_the_purpose_is_told_before_any_gpu(check, licence, purpose, code):
    language = {"source": "registry:mini-language", "licence": licence}
    found = check(micro.recipe(model={"language": language}, promotion={"purpose": purpose}).model_dump_json())
    assert getattr(found, "exit_code", None) == code
    if code:
        assert licence in found.message
        assert found.hint


def test_too_little_free_space_ends_with_73(check, monkeypatch):
    monkeypatch.setattr(preflight, "LEAST_FREE_MIB", 10**9)
    letter = check(micro.recipe().model_dump_json())
    assert letter.exit_code == 73
    assert "MiB are free" in letter.message


def test_a_store_that_takes_no_writes_ends_with_73(check, store):
    store.store.write_text("a file where the folder should be")
    assert check(micro.recipe().model_dump_json()).exit_code == 73


def test_gpus_that_are_not_there_end_with_78(check, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    letter = check(micro.recipe(resources={"gpus_per_worker": 1}).model_dump_json())
    assert letter.exit_code == 78
    assert "no GPU" in letter.message


def test_more_workers_than_processors_is_only_a_note(check, happened):
    check(micro.recipe(resources={"workers": 999}).model_dump_json())
    assert "note" in happened()


def test_no_step_alone_may_cost_more_than_the_whole_budget():
    wanted = micro.recipe(resources={"workers": 4, "gpus_per_worker": 1, "deadline_hours": 24})
    slices = recipe.slices(wanted)
    preflight.within(slices, wanted.resources, "40")
    assert {
        name: piece["resources"]["deadline_hours"] for name, piece in slices.items() if "resources" in piece
    } == dict.fromkeys(("evaluate", "align", "instruct", "task"), 10.0)
    untouched = recipe.slices(wanted)
    preflight.within(untouched, wanted.resources, "4000")
    assert untouched == recipe.slices(wanted)
    for name, piece in slices.items():
        assert recipe.key_content(piece) == recipe.key_content(untouched[name]), "a budget must not train anything again"


@pytest.mark.parametrize("budget", ["lots", "-1", "0", "nan", "inf"])
def test_a_budget_that_is_no_number_ends_with_78(budget):
    wanted = micro.recipe()
    with pytest.raises(ConfigError, match="budget"):
        preflight.within(recipe.slices(wanted), wanted.resources, budget)


def test_what_a_worker_asks_for_is_handed_out_in_kubernetes_words(check):
    slices = check(micro.recipe(resources={"cpus_per_worker": 1.5, "memory_gib": 2}).model_dump_json())
    assert (slices.cpu, slices.memory, slices.gpus) == ("1500m", "2048Mi", "0")
    assert slices.node_selector == {"biovlm.io/pool": "cpu"}


def test_a_pool_that_there_is_not_ends_with_78(check):
    letter = check(micro.recipe(resources={"pool": "h1000"}).model_dump_json())
    assert (letter.exit_code, "did you mean `h100`" in letter.message) == (78, True)

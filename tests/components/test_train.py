"""What belongs to a training step's key, and how a worker's error reaches the user."""

from __future__ import annotations

import json

import pytest

from components.evaluate import step as evaluate
from components.platform import inputs, launch, letter
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.train.step import identity
from model import errors, recipe
from model.config import EvaluateSlice, Resources, TrainSlice
from model.data.dataset import Audit
from model.training.stage import StageInputs
from tests.pipelines import micro


def data(**changes):
    facts = {
        "sets": {name: {"digest": f"{name}-1"} for name in ("mini", "other")},
        "bases": {name: {"digest": f"{name}-1"} for name in ("mini-tower", "mini-language")},
        "excluded": {"mini": [], "other": ["x"]},
    }
    return Reference(kind="data", digest="d", facts=facts | changes)


@pytest.fixture
def align():
    return TrainSlice.model_validate(recipe.slices(micro.recipe())["align"])


def test_a_stage_depends_on_what_it_reads_and_on_nothing_else_of_the_data(align):
    found = identity(align, {"data": data()})
    assert found == {name: f"{name}-1" for name in ("mini", "mini-tower", "mini-language")}
    assert identity(align, {"data": data(excluded={"mini": ["a"]})}) != found
    assert identity(align, {"data": data(), "parent": Reference(kind="checkpoint", digest="p")})["parent"] == "p"


def test_a_question_set_depends_on_what_the_audit_left_of_it():
    asked = EvaluateSlice.model_validate(recipe.slices(micro.recipe())["evaluate"])
    given = {"checkpoint": Reference(kind="checkpoint", digest="c")}
    found = [
        evaluate.identity(asked, {**given, "data": data(excluded=excluded)}) for excluded in ({}, {"mini": []}, {"mini": ["a"]})
    ]
    assert found[0] == found[1] != found[2]


def test_what_the_audit_found_and_allowed_goes_to_those_who_read_after_it():
    limits = {"max_quarantined": 0.5, "max_image_pixels": 64}
    found = inputs.audit(data(limits=limits, excluded={"mini": ["a"], "other": ["b"]}), ["mini"])
    assert found == {"exclude": {"mini": ["a"]}, **limits}
    assert StageInputs({}, {}, **found).max_image_pixels == Audit(**found).max_image_pixels == 64


def test_the_limits_belong_to_no_key(align):
    assert identity(align, {"data": data(limits={"max_quarantined": 0.5})}) == identity(align, {"data": data()})


def test_a_set_that_the_data_step_did_not_bring_is_named(align):
    with pytest.raises(errors.MissingInputError, match="no mini"):
        identity(align, {"data": data(sets={})})


@pytest.mark.parametrize("kind", errors.BiovlmError.__subclasses__())
def test_a_workers_error_keeps_its_kind_message_and_hint(tmp_path, kind):
    letter.write(tmp_path / "scratch", kind("loss is nan at step 7", "lower the learning rate"))
    letter.write(tmp_path / "scratch", errors.InternalError("a later one"))
    with pytest.raises(kind) as raised:
        letter.raise_letter(tmp_path / "scratch")
    assert (raised.value.message, raised.value.hint) == ("loss is nan at step 7", "lower the learning rate")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (errors.DivergedError("loss is nan"), errors.DivergedError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errors.CannotWriteError),
        (ValueError("what?"), errors.InternalError),
    ],
)
def test_workers_that_could_not_write_their_letter_are_understood_by_what_they_died_of(tmp_path, failure, kind):
    failed = RuntimeError("training failed")
    failed.worker_failures = {0: failure}
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path)})
    assert type(launch._letter(failed, tmp_path, Resources(), settings)) is kind


def test_without_a_letter_nothing_is_raised(tmp_path):
    letter.raise_letter(tmp_path)


def test_a_change_of_the_task_recipe_touches_no_other_slice():
    before, after = (recipe.slices(micro.recipe(stages={"task": {"epochs": epochs}})) for epochs in (1, 2))
    changed = {name for name in before if json.dumps(before[name]) != json.dumps(after[name])}
    assert changed == {"task", "register"}  # the version names the digest of the whole recipe

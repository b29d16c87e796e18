"""`--data NAME` is a change of the recipe, and nothing else."""

from __future__ import annotations

import pytest

from model import recipe as recipes
from model.config import Kind
from model.errors import DataError
from pipelines.choice import RECIPES, on_data

QUESTIONS = {"by_kind": {"question": 10, "dialogue": 3}}
TINY = recipes.load("tiny", RECIPES)


def changed(splits, *further):
    return recipes.load("tiny", RECIPES, [*on_data(TINY, "vqa-rad", splits), *further])


def test_the_task_stage_and_the_evaluation_move_and_the_rest_stays():
    recipe = changed({"train": QUESTIONS, "train_official": QUESTIONS, "test": QUESTIONS, "test_disjoint": QUESTIONS})
    (mixture,) = recipe.stages.task.data
    assert (mixture.set, mixture.split, mixture.kinds) == ("vqa-rad", "train", (Kind.QUESTION,))
    assert [(b.set, b.split) for b in recipe.evaluation.benchmarks] == [("vqa-rad", "test_disjoint"), ("vqa-rad", "test")]
    assert set(recipe.data.sets) == {"phantom", "vqa-rad"}
    assert (recipe.stages.align, recipe.stages.instruct) == (TINY.stages.align, TINY.stages.instruct)
    assert (recipe.model, recipe.promotion) == (TINY.model, TINY.promotion)
    assert recipe.stages.task.model_copy(update={"data": TINY.stages.task.data}) == TINY.stages.task


def test_other_data_has_a_champion_of_its_own():
    recipe = changed({"train": QUESTIONS, "test": QUESTIONS})
    assert (recipe.name, recipe.registered_model) == ("tiny-vqa-rad", "biovlm-tiny-vqa-rad")


def test_align_and_instruct_keep_their_keys():
    before, after = recipes.slices(TINY), recipes.slices(changed({"train": QUESTIONS, "test": QUESTIONS}))
    assert [name for name in before if before[name] == after[name]] == ["align", "instruct"]


def test_what_is_set_by_hand_wins():
    recipe = changed({"train": QUESTIONS, "test": QUESTIONS}, "registered_model=mine", "stages.task.epochs=2")
    assert (recipe.registered_model, recipe.stages.task.epochs) == ("mine", 2)


@pytest.mark.parametrize("splits", [{}, {"train": QUESTIONS}, {"test": QUESTIONS}, {"train": {"by_kind": {}}, "test": QUESTIONS}])
def test_a_set_without_questions_to_learn_or_to_ask_is_refused(splits):
    with pytest.raises(DataError, match="`train` and a split `test...` are needed"):
        on_data(TINY, "vqa-rad", splits)

"""Twelve months of a schedule with a fake clock: real registry of data, real keys and records, real registry of models.

What a training would compute is the one thing that is not real: its checkpoints hold a word, under the keys and with the records that the
steps would give them. A year with real trainings is a lane (tests/pipelines/test_year.py).
"""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from components.data import look
from components.platform.retraining import question
from components.platform.retraining.decision import Verdict
from components.platform.retraining.journal import Journal
from components.platform.retraining.policy import Policy
from model import recipe as recipes
from model.config import DataSlice
from pipelines import plan as plans
from tests.components.published import publish
from tests.components.trainer import Trainer
from tests.pipelines import micro

ALONE = {"tower": {"source": None, "config": {"model_type": "x"}}, "language": {"source": None, "config": {"model_type": "x"}}}
POLICY = Policy.model_validate(
    {
        "name": "monthly",
        "recipe": "micro",
        "when": {"cron": "0 3 1 * *"},
        "because": {"code": "never"},
        "budget": {"gpu_hours": 40},
    }
)


def publish_data(settings, train):
    """A version of the set with so many training images."""
    publish(settings, lambda folder: micro.write_set(folder, (("train", train), ("test", 6))))


class Year(Trainer):
    """A schedule, and the server's clock."""

    def month(self, number, recipe, monkeypatch):
        """What the first of a month came to."""
        monkeypatch.setenv("BIOVLM_RUN_ID", f"run-{number}")
        settings, slices = dataclasses.replace(self.settings, run_id=f"run-{number}"), recipes.slices(recipe)
        asked = question.ask(POLICY.model_dump_json(), recipe, slices, settings)
        now = datetime.datetime(2026, number, 1, 3, tzinfo=datetime.UTC)
        entry = look.answer(asked, DataSlice.model_validate(slices["data"]), settings, now)
        trained = [
            step.name for step in plans.plan(recipe, settings, ask_registry=False) if step.kind == "train" and not step.reused
        ]
        assert bool(trained) == (entry.verdict is Verdict.RUN), "the policy and the keys of the steps agree"
        if entry.verdict is Verdict.RUN:
            self.train(recipe)
        return entry


@pytest.fixture
def year(store, tmp_path):
    publish_data(store, 16)
    return Year(store, tmp_path)


def test_in_twelve_months_changed_ones_train_once_and_unchanged_ones_do_nothing(year, monkeypatch):
    recipe = micro.recipe(model=ALONE)
    verdicts, said = {}, {}
    for number in range(1, 13):
        if number in (4, 9):
            publish_data(year.settings, 14 + number)
        if number == 7:
            recipe = micro.recipe(model=ALONE, stages={"task": {"epochs": 2}})
        before = set((year.settings.store / "steps").rglob("*"))
        entry = year.month(number, recipe, monkeypatch)
        verdicts[number], said[number] = entry.verdict.value, {reason.check for reason in entry.reasons}
        if entry.verdict is Verdict.SKIP:
            assert set((year.settings.store / "steps").rglob("*")) == before, "an unchanged month makes nothing"
    assert [month for month, verdict in verdicts.items() if verdict == "run"] == [1, 4, 7, 9]
    assert (said[1], said[4], said[7], said[9]) == ({"first"}, {"data"}, {"recipe"}, {"data"})
    assert all(said[month] == {"unchanged"} for month, verdict in verdicts.items() if verdict == "skip")
    assert len(Journal(year.settings, "monthly").entries()) == 12

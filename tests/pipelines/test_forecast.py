"""What a run is thought to take: scaled from records that earlier runs left in a store, and held against what happened."""

from __future__ import annotations

import time

import pytest

from components.platform.cost import Cost
from components.platform.origin import Origin, machine
from components.platform.settings import Settings
from components.platform.store import StepRecord, open_store
from model import manifest
from model.recipe import key_content, slices
from pipelines import costs, forecast
from pipelines.forecast import Expected, Forecast
from pipelines.plan import PlannedStep
from tests.pipelines import micro

RUN = [PlannedStep(name, kind, False, "") for name, kind in (("data", "data"), ("align", "train"), ("evaluate", "evaluate"))]


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "home"), "BIOVLM_RUN_ID": "r"})


def made(settings, recipe, name, kind, seconds, age=0, **origin):
    """A step of `recipe` that was made `age` seconds ago and worked so long, with a minute of waiting before."""
    key = manifest.digest_of([name, seconds, age, origin, recipe.name])
    store = open_store(settings)
    with manifest.commit(store.folder(kind, key), "checkpoint", facts={"records": 10}) as folder:
        (folder / "weights").write_text("w")
    record = StepRecord(
        key=key,
        kind=kind,
        name=name,
        run_id="before",
        piece=key_content(slices(recipe)[name]),
        identity={},
        code="c",
        origin=Origin(machine=machine()).model_copy(update=origin),
        cost=Cost(wall_seconds=seconds + 60, queue_seconds=60),
        started=time.time() - age,
    )
    store.write_record(record)


def seconds(settings, recipe):
    found = forecast.forecast(recipe, RUN, forecast.earlier(settings), settings)
    return {name: round(step.seconds, 6) for name, step in found.steps.items()}, found.unknown


def test_without_an_earlier_run_nothing_is_made_up(settings):
    assert seconds(settings, micro.recipe()) == ({}, ("data", "align", "evaluate"))


def test_the_newest_run_is_scaled_by_what_changed_and_waiting_is_not_counted(settings):
    before = micro.recipe()
    made(settings, before, "align", "train", 500.0, age=100)
    made(settings, before, "align", "train", 28.0)
    made(settings, before, "evaluate", "evaluate", 18.0)
    made(settings, before, "data", "data", 3.0)
    assert seconds(settings, before) == ({"data": 3.0, "align": 28.0, "evaluate": 18.0}, ())
    longer = micro.recipe(stages={"align": {"epochs": 3}}, evaluation={"max_new_tokens": 8})
    # 8 s to start, then 20 s of examples, three times; 10 s of answers of 4 tokens, twice as long.
    assert seconds(settings, longer)[0] == {"data": 3.0, "align": 68.0, "evaluate": 28.0}
    wider = micro.recipe(model={"context_tokens": 512})
    assert seconds(settings, wider)[0]["align"] == 28.0, "without the base models at hand sizes are not guessed"


def test_another_kind_of_machine_or_number_of_workers_is_no_measure(settings):
    recipe = micro.recipe()
    made(settings, recipe, "align", "train", 28.0, machine={**machine(), "cpus": 9999})
    assert "align" in seconds(settings, recipe)[1]
    made(settings, recipe, "align", "train", 30.0)
    assert seconds(settings, recipe)[0]["align"] == 30.0
    assert "align" in seconds(settings, micro.recipe(resources={"workers": 2}))[1]


def test_a_forecast_is_kept_with_the_run_and_held_against_what_it_took(settings):
    settings.run_folder.mkdir(parents=True)
    found = Forecast(steps={"align": Expected(seconds=40, source="align abc"), "task": Expected(seconds=10, source="task abc")})
    forecast.keep(found, settings)
    assert forecast.kept(settings.run_folder) == found
    spent = {"align": Cost(wall_seconds=100, queue_seconds=30), "data": Cost(wall_seconds=5)}
    error = forecast.compare(found, spent)
    assert (error.expected_seconds, error.seconds, error.worst) == (40, 70, "align")
    assert costs.error_words(error) == "40 s expected, 1 min 10 s took: 75% more, most of it in align"
    assert forecast.compare(found, {}) is None
    assert forecast.compare(None, spent) is None
    (settings.run_folder / forecast.FILE).write_text("{")
    assert forecast.kept(settings.run_folder) is None


def test_costs_are_said_in_words_and_what_is_not_known_is_not_said():
    full = Cost(
        wall_seconds=200, queue_seconds=60, gpu_seconds=3600, energy_joules=3.6e6, energy_from=("rapl",), bytes_sent=2**20
    )
    assert (
        costs.words(full) == "3 min 20 s of steps, 1 min 00 s of it waiting, 1 GPU h, 1 kWh (rapl, whole machine), 1.0 MiB moved"
    )
    assert costs.words(Cost(wall_seconds=2)) == "2.0 s of steps"

"""Policies as files, and the commands that follow them. What a year of real runs does is a lane: test_year.py."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import yaml

from components.data import newest
from components.data.registry import Registry
from components.platform import versions
from components.platform.retraining.decision import Verdict
from components.platform.retraining.journal import Journal
from components.platform.settings import Settings
from model.data.dataset import open_dataset
from model.errors import ConfigError, MissingInputError
from pipelines import cli, cron, retraining
from tests.components.published import publish
from tests.pipelines import micro

POLICY = {
    "name": "monthly",
    "recipe": "tiny",
    "follow_data": ["phantom"],
    "when": {"cron": "0 3 1 * *"},
    "because": {"drift": {"of": ["modality"], "above": 0.2}, "feedback": {"file": "corrections.jsonl"}},
    "budget": {"gpu_hours": 40},
    "compare_with": "models:/biovlm-hospital@champion",
}


@pytest.fixture
def write(tmp_path):
    """Writes a policy: the usual one with changes."""

    def make(**changes):
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (POLICY | changes).items() if value is not None}))
        return path

    return make


def test_a_policy_becomes_a_recipe_that_follows_the_data_in_the_model_it_is_compared_in(write):
    plan = retraining.read(write(set=["data.sets.phantom.revision=abc", "seed=7"]))
    assert plan.recipe.data.sets["phantom"].revision == "HEAD"
    assert (plan.recipe.registered_model, plan.recipe.seed) == ("biovlm-hospital", 7)


def test_the_policy_that_people_copy_is_one():
    plan = retraining.read(Path(retraining.__file__).parent / "policies" / "monthly.yaml")
    assert plan.recipe.name == "tiny"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgt": {}}, "unknown key `budgt`; did you mean `budget`"),
        ({"because": {"data_versions": True}}, "unknown key `because.data_versions`; did you mean `data_version`"),
        ({"because": {"drift": {"abov": 1}}}, "unknown key `because.drift.abov`; did you mean `above`"),
        ({"because": {"drift": {"of": ["modalty"]}}}, "because.drift.of.0: Input should be"),
        ({"when": {"cron": "0 25 1 * *"}}, "'25' is no hour"),
        ({"when": {"cron": "0 3 1 * *", "time_zone": "Europe/Berln"}}, "unknown zone"),
        ({"recipe": "tinny"}, "did you mean `tiny`"),
        ({"set": ["stages.task.epoch=2"]}, "did you mean `epochs`"),
        ({"follow_data": ["phantm"]}, "did you mean `phantom`"),
        ({"budget": None}, "budget: Field required"),
        ({"budget": {"gpu_hours": 40, "gpu_hours_in_30_days": 10}}, "is less than one run's gpu_hours 40"),
        ({"compare_with": "models:/biovlm-tiny/3"}, "compare_with"),
        ({"promote": "always"}, "promote: Input should be 'by_gate' or 'after_approval'"),
        ({"cool_down_days": -1}, "cool_down_days"),
    ],
)
def test_a_mistake_in_a_policy_is_named_with_its_place(write, change, said, capsys):
    assert cli.call(["plan", "--policy", str(write(**change))]) == 78
    err = capsys.readouterr().err
    assert said in err
    assert "policy.yaml" in err
    assert "hint: " in err


def test_a_key_that_stands_twice_and_a_file_that_is_none_are_refused(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(ConfigError, match=r"policy.yaml:2: .*stands twice"):
        retraining.read(path)
    with pytest.raises(MissingInputError):
        retraining.read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "words",
    [["plan", "--recipe", "other"], ["run", "--if-changed", "--set", "seed=1"], ["run", "--if-changed", "--data", "x"], ["run"]],
)
def test_a_policy_is_given_alone_and_a_run_with_one_says_if_changed(write, words, capsys):
    assert cli.call([*words, "--policy", str(write())]) == 64
    assert "hint: " in capsys.readouterr().err


def test_a_plan_of_a_policy_in_a_new_home_says_why_it_would_run_and_writes_nothing(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.call(["plan", "--policy", str(write())]) == 0
    out = capsys.readouterr().out
    assert "policy monthly: run\n  + nothing was trained by this recipe yet" in out
    assert "compared: with models:/biovlm-hospital@champion" in out
    assert "cost:     0.0 GPU hours from the beginning, budget 40" in out
    assert not (tmp_path / "home").exists()
    assert cli.call(["plan", "--policy", str(write()), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["reasons"][0]["check"], len(found["steps"])) == ("run", "first", 8)


def at(text):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("expression", "zone", "moment", "last", "following"),
    [
        ("0 3 1 * *", "UTC", "2026-05-01T03:00:00", "2026-05-01T03:00:00", "2026-06-01T03:00:00"),
        ("0 3 1 * *", "UTC", "2026-05-01T02:59:59", "2026-04-01T03:00:00", "2026-05-01T03:00:00"),
        ("0 3 1 * *", "Europe/Berlin", "2026-05-01T01:00:00", "2026-05-01T01:00:00", "2026-06-01T01:00:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T12:00:00", "2026-03-28T01:30:00", "2026-03-30T00:30:00"),
        ("0 0 29 2 *", "UTC", "2026-05-01T00:00:00", "2024-02-29T00:00:00", "2028-02-29T00:00:00"),
        ("0 6 13 * fri", "UTC", "2026-05-07T12:00:00", "2026-05-01T06:00:00", "2026-05-08T06:00:00"),
        ("*/20 * * * *", "UTC", "2026-05-07T12:19:59", "2026-05-07T12:00:00", "2026-05-07T12:20:00"),
    ],
    ids=["at the moment", "just before", "summer time", "an hour that never was", "leap day", "day of month or week", "minutes"],
)
def test_cron_is_read_as_a_clock(expression, zone, moment, last, following):
    assert cron.latest(expression, zone, at(moment)) == at(last)
    assert cron.following(expression, zone, at(moment)) == at(following)


def corrected(number, record, **changes):
    values = {
        "id": f"c-{number}",
        "set": "mini",
        "record": record,
        "problem": "wrong_reference",
        "answer": "violet",
        "by": "reader-3",
    }
    return json.dumps(values | {"time": "2026-05-04T09:30:00Z"} | changes) + "\n"


def test_enough_corrections_become_a_data_set_that_the_task_stage_learns_from_and_none_of_the_test_split(write, tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "home")})
    publish(settings, micro.write_set)
    model = {part: {"source": None, "config": {"model_type": "x"}} for part in ("tower", "language")}
    (tmp_path / "recipe.yaml").write_text(micro.recipe(model=model).model_dump_json())
    reasons = {"feedback": {"file": "corrections.jsonl", "at_least": 4, "weight": 2}}
    plan = retraining.read(write(recipe="recipe.yaml", follow_data=None, because=reasons))
    file = tmp_path / "corrections.jsonl"

    file.write_text(corrected(1, "train-1-o") + corrected(2, "test-2-o") + corrected(3, "train-3-q", answer=""))
    few = retraining.look(plan, settings, at("2026-05-01T03:00:10"))
    assert (few.takes, list(few.plan.recipe.data.sets)) == (None, ["mini"])
    file.write_text(file.read_text() + corrected(4, "train-1-o", answer="teal"))
    found = retraining.look(plan, settings, at("2026-05-01T03:00:10"))
    assert found.facts.now.data["corrections"] == newest.UNBUILT
    assert [str(mix.set) for mix in found.plan.recipe.stages.task.data] == ["mini", "corrections"]

    taken = retraining.take(found, settings)
    assert (taken.learned, taken.left_out) == (1, 3), (
        "of two about one record the later; none that is asked, none without an answer"
    )
    registry = Registry(settings.home)
    folder = registry.materialise(["corrections"], "HEAD", settings.store)["corrections"].path
    (record,) = open_dataset(folder).records("train")
    assert (record.id, record.answer, record.group) == ("correction-c-4", "teal", "train-1")
    assert (registry.version("corrections").facts["licence"], registry.version("corrections").facts["source"].keys()) == (
        "CC0-1.0",
        {"mini"},
    )
    later = retraining.look(plan, settings, at("2026-05-01T03:00:10"))
    assert later.plan.recipe == found.plan.recipe, "from now on every run learns from them"


def test_a_curator_makes_the_data_set_without_a_training_and_a_policy_without_a_file_is_a_letter(
    write, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "home"))
    publish(Settings.from_environment(), micro.write_set)
    model = {part: {"source": None, "config": {"model_type": "x"}} for part in ("tower", "language")}
    (tmp_path / "recipe.yaml").write_text(micro.recipe(model=model).model_dump_json())
    policy = {"recipe": "recipe.yaml", "follow_data": None, "because": {"feedback": {"file": "corrections.jsonl"}}}
    path = write(**policy)
    assert cli.call(["data", "corrections", str(path)]) == 66
    (tmp_path / "corrections.jsonl").write_text(corrected(1, "train-1-o") + corrected(2, "test-2-o"))
    capsys.readouterr()
    assert cli.call(["data", "corrections", str(path), "--json"]) == 0
    told = capsys.readouterr()
    assert "1 corrections are learned from, 1 lines left out" in told.err
    assert [(one["name"], one["kind"]) for one in json.loads(told.out)] == [("corrections", "data")]
    assert versions.models(Settings.from_environment()) == []
    assert cli.call(["data", "corrections", str(write(**policy | {"because": {}}))]) == 64


def test_a_look_that_comes_before_its_time_leaves_no_trace_and_one_in_time_does(write, tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "home")})
    plan = retraining.read(write())
    first = retraining.look(plan, settings, at("2026-05-01T03:00:10"))
    assert (first.decision.verdict, retraining.keep(first, settings).number) == (Verdict.RUN, 1)
    retraining.close(first, settings, 75, "run-1")
    early = retraining.look(plan, settings, at("2026-05-20T12:00:00"))
    assert [reason.check for reason in early.decision.reasons if reason.effect == "against"] == ["when"]
    assert retraining.keep(early, settings) is None
    again = retraining.look(plan, settings, at("2026-06-01T03:00:10"))
    assert (again.decision.verdict, again.decision.goes_on) == (Verdict.RUN, True)
    assert [entry.exit_code for entry in Journal(settings, "monthly").entries()] == [75]
    assert versions.models(settings) == []

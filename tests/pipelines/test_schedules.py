"""Schedules as files: what is read, what is decided, and that many appliers end with one recurring run."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from components.platform.retraining.policy import Policy
from model.errors import ConfigError
from pipelines import cli, cluster, cron, estimate, schedule_server, schedules, submit
from pipelines.estimate import Estimate
from pipelines.schedules import Found, Wanted
from tests.pipelines import micro

ENTRY = {"name": "monthly", "cron": "0 3 1 * *", "recipe": "tiny", "follow_data": ["phantom"], "budget_gpu_hours": 40}


@pytest.fixture
def write(tmp_path):
    """Writes a file of schedules: the usual one with changes."""

    def make(*entries, **changes):
        path = tmp_path / "schedules.yaml"
        path.write_text(yaml.safe_dump({"schedules": list(entries) or [ENTRY | changes]}))
        return path

    return make


@pytest.fixture
def say(capsys):
    def run(*arguments):
        code = cli.call(["schedule", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("text", "six"),
    [
        ("0 3 1 * *", "0 0 3 1 * *"),
        ("30 0 3 1 * *", "30 0 3 1 * *"),
        ("*/15 8-18 * * MON-FRI", "0 */15 8-18 * * mon-fri"),
        ("0 0 31 1,7 ?", "0 0 0 31 1,7 ?"),
        ("@monthly", "0 0 0 1 * *"),
    ],
)
def test_cron_is_written_as_the_server_reads_it(text, six):
    assert cron.six_fields(text) == six


@pytest.mark.parametrize(
    "text", ["", "0 3 1 *", "60 3 1 * *", "0 24 1 * *", "0 3 0 * *", "0 3 1 13 *", "0 3 1 * 7", "a * * * *", "0 3 5-1 * *"]
    + ["*/0 * * * *", "0 3 31 2 *", "0 3 30,31 feb *", "@often", "0 3 1 * * * *", "0 ٣ 1 * *", "0 3 1 * -"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(ConfigError):
        cron.six_fields(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cronn": "0 3 1 * *"}, "did you mean `cron`"),
        ({"max_concurrency": 3}, "unknown key `schedules.0.max_concurrency`"),
        ({"cron": "0 25 1 * *"}, "schedule monthly: cron: '25' is no hour"),
        ({"time_zone": "Europe/Berln"}, "unknown zone"),
        ({"time_zone": "Europe/Berlin"}, "the server reads cron in UTC"),
        ({"recipe": "tinny"}, "did you mean `tiny`"),
        ({"set": ["stages.task.epoch=2"]}, "did you mean `epochs`"),
        ({"follow_data": ["phantm"]}, "did you mean `phantom`"),
        ({"budget_gpu_hours": 0}, "budget_gpu_hours"),
        ({"name": "Monthly run"}, "name"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(write, say, change, said):
    code, out, err = say("apply", write(**change))
    assert (code, out) == (78, "")
    assert said in err
    assert "schedules.yaml" in err
    assert "hint: " in err


def test_a_misspelt_key_is_named_before_the_one_that_is_missing(write):
    wrong = {("cronn" if key == "cron" else key): value for key, value in ENTRY.items()}
    with pytest.raises(ConfigError, match=r"unknown key `schedules.0.cronn`; did you mean `cron`"):
        schedules.read(write(wrong), "UTC")


def test_two_schedules_of_one_name_are_refused(write):
    with pytest.raises(ConfigError, match="same name: monthly"):
        schedules.read(write(ENTRY, ENTRY), "UTC")


@pytest.mark.parametrize(("text", "code"), [(None, 66), ("a: [", 78), ("schedules: []", 78), ("- 1", 78)])
def test_a_file_that_is_none_is_refused(tmp_path, say, text, code):
    path = tmp_path / "schedules.yaml"
    if text is not None:
        path.write_text(text)
    assert say("apply", path)[0] == code


def test_the_data_to_follow_are_taken_at_their_newest(write):
    (wanted,) = schedules.read(write(set=["data.sets.phantom.revision=abc"], follow_data=["phantom"]), "UTC")
    assert json.loads(wanted.parameters["recipe"])["data"]["sets"]["phantom"]["revision"] == "HEAD"
    (pinned,) = schedules.read(write(set=["data.sets.phantom.revision=abc"], follow_data=[]), "UTC")
    assert json.loads(pinned.parameters["recipe"])["data"]["sets"]["phantom"]["revision"] == "abc"


# ----------------------------------------------------------------------------------------------------------- deciding

WANTED = Wanted("monthly", "0 0 3 1 * *", True, {"recipe": "{}", "budget": "40", "trigger": "schedule:monthly"})
GOOD = Found("b", "monthly", WANTED.spec, "2026-01-01", True, WANTED.cron, True, WANTED.parameters, 1, False)


def test_what_is_as_the_file_wants_it_is_kept():
    decision = schedules.decide(WANTED, [GOOD, replace(GOOD, name="weekly")])
    assert (decision.keep, decision.make, decision.delete) == (GOOD, False, ())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cron": "0 0 4 1 * *"}, "cron: '0 0 4 1 * *' instead of '0 0 3 1 * *'"),
        ({"no_catchup": False}, "no_catchup: False instead of True"),
        ({"at_once": 5}, "runs at once: 5 instead of 1"),
        ({"pinned": True}, "it stays with one version"),
        ({"parameters": WANTED.parameters | {"budget": "400"}}, "budget: '400' instead of '40'"),
        ({"parameters": WANTED.parameters | {"recipe": "[]"}}, "the recipe is another"),
        ({"parameters": WANTED.parameters | {"trigger": "person:me"}}, "trigger: 'person:me' instead of 'schedule:monthly'"),
    ],
)
def test_drift_is_seen_even_where_the_description_says_that_nothing_changed(change, why):
    decision = schedules.decide(WANTED, [replace(GOOD, **change)])
    assert decision.make
    assert why in decision.why[0]


def test_of_equal_ones_the_oldest_stays_whoever_looks():
    same = [replace(GOOD, identifier=name, created=when) for name, when in (("c", "1"), ("a", "2"), ("b", "1"))]
    for order in (same, same[::-1]):
        decision = schedules.decide(WANTED, order)
        assert (decision.keep.identifier, {one.identifier for one in decision.delete}) == ("b", {"a", "c"})


def test_a_paused_schedule_that_is_replaced_stays_paused():
    assert schedules.decide(WANTED, [replace(GOOD, cron="x", enabled=False)]).enabled is False
    assert schedules.decide(WANTED, []).enabled is True


def test_what_is_not_ours_is_not_looked_at():
    foreign = SimpleNamespace(display_name="monthly", description="made by hand")
    renamed = SimpleNamespace(display_name="other", description=WANTED.description)
    assert schedules.found([foreign, renamed]) == []


# ----------------------------------------------------------------------------------------------------------- the server


def test_applying_twice_makes_one_that_follows_the_newest_version(kfp, write, say):
    assert say("apply", write())[:2] == (0, "monthly: made\n")
    assert say("apply", write())[:2] == (0, "monthly: unchanged\n")
    (made,) = kfp.recurring.values()
    assert "pipeline_version_id" not in made["pipeline_version_reference"]
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["runtime_config"]["parameters"]["budget"] == "40"
    assert made["runtime_config"]["parameters"]["trigger"] == "schedule:monthly"


def test_a_change_is_shown_then_made_new_before_the_old_one_goes(kfp, write, say):
    say("apply", write())
    (old,) = kfp.recurring
    code, out, _ = say("diff", write(cron="0 4 1 * *"))
    assert (code, "monthly: replace" in out, "'0 0 4 1 * *'" in out) == (65, True, True)
    kfp.asked.clear()
    assert say("apply", write(cron="0 4 1 * *"))[1] == "monthly: replaced\n"
    (new,) = kfp.recurring
    assert new != old
    acts = [line for line in kfp.asked if "recurringruns" in line and not line.startswith("GET")]
    assert [line.split()[0] for line in acts] == ["POST", "DELETE"]
    assert say("diff", write(cron="0 4 1 * *"))[0] == 0


def test_pausing_lasts_over_a_change(kfp, write, say):
    say("apply", write())
    assert say("pause", write())[0] == 0
    assert say("apply", write(cron="0 4 1 * *"))[1] == "monthly: replaced, paused\n"
    assert [run["status"] for run in kfp.recurring.values()] == ["DISABLED"]
    assert "paused" in say("list")[1]
    say("resume", write(cron="0 4 1 * *"))
    assert [run["status"] for run in kfp.recurring.values()] == ["ENABLED"]
    assert json.loads(say("list", "--json")[1])[0]["enabled"] is True


POLICY = {
    "name": "retraining",
    "recipe": "tiny",
    "follow_data": ["phantom"],
    "when": {"cron": "@monthly"},
    "because": {"code": "release_tag", "drift": {"above": 0.3}},
    "budget": {"gpu_hours": 40},
}


def test_a_policy_is_a_schedule_whose_runs_carry_it(kfp, tmp_path, say):
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(POLICY))
    assert say("apply", path)[:2] == (0, "retraining: made\n")
    assert say("apply", path)[:2] == (0, "retraining: unchanged\n")
    (made,) = kfp.recurring.values()
    given = made["runtime_config"]["parameters"]
    policy = Policy.model_validate_json(given["policy"])
    assert (policy.name, policy.because.drift.above, given["budget"]) == ("retraining", 0.3, "40")
    assert json.loads(given["recipe"])["data"]["sets"]["phantom"]["revision"] == "HEAD"
    assert (made["trigger"]["cron_schedule"]["cron"], made["no_catchup"]) == ("0 0 0 1 * *", True)
    path.write_text(yaml.safe_dump(POLICY | {"cool_down_days": 14}))
    code, out, _ = say("diff", path)
    assert (code, "the policy is another" in out) == (65, True)
    assert say("pause", path)[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"because": {"feedback": {"file": "corrections.jsonl"}}}, "pods do not see it"),
        ({"when": {"cron": "@monthly", "time_zone": "Europe/Berlin"}}, "the server reads cron in UTC"),
        ({"budgt": {}}, "did you mean `budget`"),
    ],
)
def test_a_policy_that_no_server_can_follow_is_refused(tmp_path, say, change, said):
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(POLICY | change))
    code, _, err = say("apply", path)
    assert (code, said in err, "policy.yaml" in err) == (78, True, True)


def test_a_policy_whose_corrections_reach_pods_as_a_data_set_is_a_schedule(kfp, tmp_path, say):
    recipe = json.loads(micro.recipe().model_dump_json())
    recipe["data"]["sets"]["corrections"] = {"revision": "HEAD"}
    path = tmp_path / "policy.yaml"
    wanted = {"recipe": "recipe.yaml", "follow_data": ["mini"], "because": {"feedback": {"file": "corrections.jsonl"}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    path.write_text(yaml.safe_dump(POLICY | wanted | {"follow_data": ["mini", "corrections"]}))
    code, _, err = say("apply", path)
    assert (code, "biovlm data corrections" in err) == (78, True), "the task stage does not learn from them"
    recipe["stages"]["task"]["data"].append({"set": "corrections", "kinds": ["question"]})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    path.write_text(yaml.safe_dump(POLICY | wanted))
    assert say("apply", path)[0] == 78, "nobody would look for their newest version"
    path.write_text(yaml.safe_dump(POLICY | wanted | {"follow_data": ["mini", "corrections"]}))
    assert say("apply", path)[0] == 0
    assert len(kfp.recurring) == 1


def test_a_schedule_whose_runs_cost_more_than_its_budget_is_not_applied(kfp, write, say, monkeypatch):
    monkeypatch.setattr(estimate, "of", lambda recipe, settings: Estimate({"task": 41.0}))
    gpu = ["resources.gpus_per_worker=1", "resources.deadline_hours=100"]
    code, _, err = say("apply", write(set=gpu))
    assert (code, "thought to cost 41.0 GPU hours, the budget is 40" in err, kfp.recurring) == (77, True, {})
    assert say("apply", write(set=gpu, budget_gpu_hours=42))[0] == 0


def test_pausing_what_is_not_there_is_66(kfp, write, say):
    assert say("pause", write())[0] == 66


def test_what_the_file_does_not_name_stays_unless_it_is_pruned(kfp, write, say):
    say("apply", write(ENTRY, ENTRY | {"name": "weekly"}))
    code, _, err = say("apply", write())
    assert (code, len(kfp.recurring), "weekly: on the server and not in the file" in err) == (0, 2, True)
    assert "weekly: deleted" in say("apply", write(), "--prune")[1]
    assert [run["display_name"] for run in kfp.recurring.values()] == ["monthly"]


def apply_at_once(files, kfp):
    """Applies each file in a thread of its own, from the same moment on; the errors."""
    ready, errors = threading.Barrier(len(files)), []
    package = submit.package(cluster.connect().addresses)

    def one(path):
        try:
            server, wanted = cluster.connect(), schedules.read(path, "UTC")
            ready.wait(60)
            schedule_server.apply(server, wanted, package, "biovlm")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return errors


@pytest.mark.parametrize("tick", [0, 1], ids=["all made in the same second", "one after the other"])
def test_sixteen_at_once_end_with_one_recurring_run(kfp, write, tick):
    kfp.tick, kfp.jitter = tick, 1.0  # all have looked before the first one writes
    assert apply_at_once([write()] * 16, kfp) == []
    assert kfp.asked.count("POST /apis/v2beta1/recurringruns") > 1, "nobody ran into anybody: the test shows nothing"
    assert [len(kfp.recurring), len(kfp.pipelines), len(kfp.experiments)] == [1, 1, 1]


def test_sixteen_that_replace_one_at_once_end_with_one(kfp, write, say):
    say("apply", write())
    kfp.jitter = 0.05
    assert apply_at_once([write(cron="0 4 1 * *")] * 16, kfp) == []
    assert [run["trigger"]["cron_schedule"]["cron"] for run in kfp.recurring.values()] == ["0 0 4 1 * *"]


def test_two_files_at_once_never_leave_a_schedule_without_any(kfp, tmp_path, say):
    paths = []
    for hour in (4, 5):
        paths.append(tmp_path / f"{hour}.yaml")
        paths[-1].write_text(yaml.safe_dump({"schedules": [ENTRY | {"cron": f"0 {hour} 1 * *"}]}))
    kfp.jitter = 0.05
    assert apply_at_once(paths * 4, kfp) == []
    assert len(kfp.recurring) >= 1
    say("apply", paths[0])
    assert len(kfp.recurring) == 1

"""Twelve months of `biovlm run --if-changed --policy` with a fake clock and real trainings of the micro recipe.

Each month is the command as a process of its own, as a machine's cron would start it. Months in which nothing changed start no pipeline.
"""

from __future__ import annotations

import json

import pytest
import yaml

from components.data.registry import Registry
from components.platform import versions
from components.platform.retraining.journal import Journal
from components.platform.settings import Settings
from tests.pipelines import command, micro

pytestmark = [pytest.mark.lane, pytest.mark.timeout(1800)]
COMMAND = """
import datetime, sys
from pipelines import cli, cli_policy
cli_policy._now = lambda: datetime.datetime.fromisoformat(sys.argv[1])
raise SystemExit(cli.call(["run", "--if-changed", "--policy", sys.argv[2], "--json"]))
"""
POLICY = {
    "name": "monthly",
    "recipe": "recipe.yaml",
    "follow_data": ["mini"],
    "when": {"cron": "0 3 1 * *"},
    "because": {"code": "never", "feedback": {"file": "corrections.jsonl", "at_least": 2}},
    "budget": {"gpu_hours": 1},
}


def corrected(number):
    values = {"id": f"c-{number}", "set": "mini", "record": f"train-{number}-o", "problem": "wrong_reference", "answer": "violet"}
    return json.dumps(values | {"by": "reader-3", "time": "2026-09-04T09:30:00Z"}) + "\n"


@pytest.fixture
def place(tmp_path):
    """A folder with a filled home, a recipe and a policy."""
    micro.fill(tmp_path / "home")
    (tmp_path / "recipe.yaml").write_text(micro.recipe().model_dump_json())
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    return tmp_path


def month(place, number):
    """What the command said on the first of a month."""
    words = ("-c", COMMAND, f"2026-{number:02d}-01T03:00:05+00:00", place / "policy.yaml")
    status, out, err = command.call(place / "home", *words)
    assert status == 0, err
    return json.loads(out)


def test_each_changed_month_trains_once_and_an_unchanged_one_starts_nothing(place):
    settings, said, runs = Settings.from_environment({"BIOVLM_HOME": str(place / "home")}), {}, {}
    for number in range(1, 13):
        if number == 4:
            Registry(place / "home").add(
                "mini", lambda folder: micro.write_set(folder, (("train", 18), ("test", 6))), "more data"
            )
        if number == 9:
            (place / "corrections.jsonl").write_text(corrected(1) + corrected(2))
        before = set((place / "home" / "runs").glob("*"))
        said[number] = month(place, number)
        runs[number] = len(set((place / "home" / "runs").glob("*")) - before)
    assert runs == {number: int(number in (1, 4, 9)) for number in range(1, 13)}
    assert all(said[number]["unchanged"] for number in runs if not runs[number])
    assert [said[number]["version"] for number in (1, 4, 9)] == ["1", "2", "3"]
    states = {step["name"]: step["state"] for step in said[9]["steps"]}
    assert (states["align"], states["instruct"], states["task"]) == ("reused", "reused", "ran"), (
        "corrections touch the task stage alone"
    )
    entries = Journal(settings, "monthly").entries()
    assert [entry.exit_code for entry in entries if entry.verdict == "run"] == [0, 0, 0]
    assert len(entries) == 12
    assert len(versions.history(settings, "micro")) == 3
    status, out, err = command.call(place / "home", "-m", "pipelines.cli", "lineage", "show", "models:/micro/3", "--json")
    assert status == 0, err
    triggers = [node["facts"].get("trigger") for node in json.loads(out)["nodes"] if node["kind"] == "step"]
    assert set(triggers) == {"policy:monthly"}

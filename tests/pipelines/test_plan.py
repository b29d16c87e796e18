"""What a plan says when nothing was ever run; with runs behind it, see test_run.py."""

from __future__ import annotations

import shutil

from components.platform.events import EventLog, EventType
from components.platform.settings import Settings
from components.platform.store import StepRecord
from model.errors import ExitCode, RefusedError
from pipelines import local
from pipelines import plan as plans
from pipelines.summary import STEPS
from tests.pipelines import micro


def test_in_a_new_home_everything_runs(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path / "home")})
    steps = plans.plan(micro.recipe(), settings)
    assert [step.name for step in steps] == [name for name in STEPS if name != "preflight"]
    assert [step.name for step in steps if step.reused] == ["champion"]  # there is none
    assert steps[0].reason == "waits for the data registry"
    assert not (tmp_path / "home").exists(), "a plan writes nothing"


def test_the_parts_of_a_key_that_changed_are_named():
    piece = {"stage": {"epochs": 1, "rates": {"connector": 0.1}}, "seed": 0}
    last = StepRecord(
        key="k", kind="train", name="task", run_id="r", piece=piece, identity={"mini": "a", "parent": "p"}, code="c", started=0.0
    )
    assert plans.why(None, piece, {}, "c") == "runs for the first time"
    assert plans.why(last, piece, {"mini": "a", "parent": "p"}, "c") == "its result is no longer in the store"
    changed = {"stage": {"epochs": 2, "rates": {"connector": 0.1}}, "seed": 0}
    assert plans.why(last, changed, {"mini": "b", "parent": "p"}, "d") == "recipe: stage.epochs; input: mini; code"


def test_the_exit_code_of_a_run_is_that_of_the_step_that_failed(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_RUN_ID": "r"})
    log = EventLog(settings.events, "task")
    log.write(EventType.STEP_STARTED, facts={"pid": 1})
    log.write(EventType.FAILED, exit_code=77, message="a file was changed", hint="restore it")
    letter = local._letter(settings)
    assert (type(letter), letter.exit_code) == (RefusedError, ExitCode.REFUSED)
    assert (letter.message, letter.hint) == ("task: a file was changed", "restore it")


def test_a_step_that_vanished_on_a_full_disk_is_told_as_one_that_cannot_write(tmp_path, monkeypatch):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_RUN_ID": "r"})
    EventLog(settings.events, "task").write(EventType.STEP_STARTED, facts={"pid": 1})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    letter = local._letter(settings)
    assert letter.exit_code == ExitCode.CANNOT_WRITE
    assert "No space left on device (task could not even say so)" in letter.message


def test_a_step_that_vanished_is_named(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_RUN_ID": "r"})
    EventLog(settings.events, "task").write(EventType.STEP_STARTED, facts={"pid": 1})
    letter = local._letter(settings)
    assert letter.exit_code == ExitCode.INTERNAL
    assert "task ended without a word" in letter.message

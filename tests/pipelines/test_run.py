"""Whole runs of the micro recipe through KFP's local runner, on a real Ray worker, with MLflow on SQLite.

In order: a run that is interrupted; the same run again, whose worker is killed; and once more, with nothing left to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from components.platform import events, inputs, versions
from components.platform.lineage import auditing
from components.platform.tracking import Tracking
from model import manifest
from model.data.dataset import open_dataset
from pipelines import plan as plans
from pipelines.summary import STEPS
from tests.pipelines import micro

pytestmark = pytest.mark.slow
# Long enough to be stopped in the middle: hundreds of steps of a few milliseconds.
LONG = json.dumps({"stages": {"align": {"epochs": 60}, "instruct": {"epochs": 20}}})


def processes(run_folder, name=""):
    """Ids of the processes of one run, found by their environment, whose command holds `name`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(run_folder).encode() in (path / "environ").read_bytes() and name.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def training(step, least):
    return lambda event: event.type == "progress" and event.step == step and event.done >= least


def nothing_half_written(home):
    store = home / "store"
    assert not [path for path in store.rglob(".*.tmp") if "work" not in path.relative_to(store).parts]
    for folder in store.glob("steps/*/*/"):
        manifest.verify(folder)


def state(result):
    return {step["name"]: step["state"] for step in result["steps"]}


@pytest.fixture(scope="module")
def told():
    """What the runs of this module printed."""
    return {}


def test_an_interrupted_run_ends_with_75_saves_its_place_and_leaves_nothing_half_written(start, home, told):
    run = start(LONG)
    reached = run.wait_for(training("align", 6))
    run.interrupt()
    code, out, err = run.end()
    assert code == 75, err
    assert state(json.loads(out))["align"] == "stopped"
    assert [event.exit_code for event in events.read(run.folder / "events.jsonl") if event.type == "failed"] == [75]
    assert not processes(run.folder)
    nothing_half_written(home)
    assert list((home / "store" / "work" / "train").rglob("step-*")), "a checkpoint is kept"
    told["reached"] = reached.done


def test_the_same_command_goes_on_and_survives_a_killed_worker(start, home, told):
    run = start(LONG)
    resumed = run.wait_for(lambda event: event.type == "resumed" and event.step == "align")
    assert resumed.done >= told["reached"] - 2  # a checkpoint every 2 steps
    run.wait_for(training("instruct", 6))
    (worker,) = processes(run.folder, "RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    code, out, err = run.end()
    assert code == 0, err + (run.folder / "kfp.log").read_text()[-3000:]
    told["first"] = result = json.loads(out)
    assert set(state(result).values()) == {"ran", "reused", "checked"}
    steps = {step["name"]: step for step in result["steps"]}
    assert steps["align"]["resumed_from"] == resumed.done
    assert steps["instruct"]["resumed_from"] >= 4
    assert (result["version"], steps["data"]["state"], steps["champion"]["state"]) == ("1", "reused", "reused")
    assert result["decision"] in ("promote", "hold")
    assert "report.html" in result["report"]
    nothing_half_written(home)


def test_the_run_is_in_mlflow_as_one_tree(settings, told):
    tracking = Tracking(settings)
    result = told["first"]
    root = tracking.root(result["run_id"])
    runs = tracking.client.search_runs([tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{root}'")
    assert {run.data.tags["biovlm.step"] for run in runs} == set(STEPS) - {"preflight"} | {"preflight"}
    task = next(run for run in runs if run.data.tags["biovlm.step"] == "task")
    assert [entry.dataset.name for entry in task.inputs.dataset_inputs] == ["mini"]
    assert tracking.client.get_metric_history(task.info.run_id, "loss")
    assert tracking.client.get_run(root).info.status == "FINISHED"
    version = versions.find(settings, "models:/micro/1")
    assert auditing.verify(settings, version).broken == []


def test_a_second_run_reuses_every_step(start, settings, told):
    run = start(LONG)
    code, out, err = run.end()
    assert code == 0, err
    result = json.loads(out)
    again = {name for name, what in state(result).items() if what != "reused"}
    assert again == {"preflight"}
    assert (result["version"], result["decision"]) == ("1", told["first"]["decision"])
    assert not (run.folder / "ray.log").exists(), "Ray is not started for nothing"


def test_the_data_artifact_lists_the_images_that_train_and_no_others(home):
    artifact, dataset = next(home.glob("store/steps/data/*/")), open_dataset(next(home.glob("store/data/mini-*")))
    digests = {entry.path: entry.sha256 for entry in dataset.manifest.files}
    train, test = (
        {digests[image] for record in dataset.records(split) for image in record.images} for split in ("train", "test")
    )
    assert inputs.learned_images(artifact) == train
    assert train - test


def test_a_change_of_the_task_stage_reuses_align_and_instruct(settings):
    changed = micro.recipe(**json.loads(LONG) | {"name": "micro"})
    stages = changed.stages.model_copy(update={"task": changed.stages.task.model_copy(update={"epochs": 2.0})})
    steps = {step.name: step for step in plans.plan(changed.model_copy(update={"stages": stages}), settings)}
    assert [name for name, step in steps.items() if step.reused] == ["data", "align", "instruct"] + (
        ["champion"] if steps["champion"].reused else []
    )
    assert steps["task"].reason == "recipe: stage.epochs"
    assert steps["evaluate"].reason == "waits for the step before"


def test_a_data_file_that_was_changed_is_found_and_laid_anew(start, home):
    image = next(home.glob("store/data/mini-*/images/*.png"))
    image.write_bytes(image.read_bytes() + b"x")
    code, out, err = start(LONG).end()
    assert code == 0, err
    assert state(json.loads(out))["data"] == "ran"
    assert state(json.loads(out))["align"] == "reused"
    nothing_half_written(home)


def test_a_command_that_was_killed_leaves_no_process_behind(start):
    run = start(LONG)
    run.wait_for(lambda event: event.type == "step_started")
    run.process.kill()
    run.process.communicate()
    deadline = time.monotonic() + 20
    while processes(run.folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes(run.folder)


def test_an_unreachable_tracking_store_ends_the_run_before_it_trains(start, home):
    run = start("{}", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    code, out, _ = run.end()
    assert code == 66
    assert state(json.loads(out))["data"] == "not reached"
    failed = [event for event in events.read(run.folder / "events.jsonl") if event.type == "failed"]
    assert "does not answer" in failed[0].message
    assert "MLFLOW_TRACKING_URI" in failed[0].hint


def test_no_record_text_is_in_any_log(home):
    for path in home.glob("runs/*/*.log"):
        assert "Which colour" not in path.read_text()
    for path in home.glob("runs/*/events.jsonl"):
        assert "Which colour" not in path.read_text()

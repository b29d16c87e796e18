"""MLflow's door: one run for each step, found again; the champion read without MLflow; a store that is not there."""

from __future__ import annotations

import dataclasses
import time

import pytest

from components.platform import champion, events, mirror, peek
from components.platform.events import EventType
from components.platform.tracking import Tracking
from model.errors import MissingInputError

PIECE = {"seed": 7, "stage": {"rates": {"connector": 0.001}, "data": [{"set": "phantom", "kinds": ["caption"]}]}}


def test_a_step_of_a_run_has_one_child_below_one_root(store):
    tracking = Tracking(store)
    child = tracking.child("run-1", "align")
    assert Tracking(store).child("run-1", "align") == child
    assert tracking.child("run-1", "align", attempt=2) != child
    assert tracking.client.get_run(child).data.tags["mlflow.parentRunId"] == tracking.root("run-1")


def test_trying_to_write_leaves_marks_where_a_run_will_write_and_no_model_of_its_own(store):
    """What a login may not is tried against MLflow's own login in tests/infra/kubernetes/test_login.py."""
    tracking = Tracking(store)
    tracking.try_writing("mini")
    assert not tracking.client.search_registered_models()
    tracking.client.create_registered_model("mini")
    tracking.try_writing("mini")
    assert "biovlm.probed" in tracking.registered("mini").tags
    assert "biovlm.probed" in tracking.client.get_experiment(tracking.experiment_id).tags
    assert [found.name for found in tracking.client.search_registered_models()] == ["mini"]


def test_the_mirror_copies_parameters_curves_figures_files_and_failures(store, step):
    log = events.EventLog(store.events, "align")
    events.EventLog(store.events).write(EventType.RUN_STARTED, facts={"recipe": "tiny", "steps": ["align"]})
    for done in (1, 2, 1, 2, 3):  # a worker died after 2 and began again
        log.write(EventType.PROGRESS, done=done, total=3, metrics={"loss": 1.0 / done})
    step(PIECE)
    step.makes = lambda work: 1 / 0
    with pytest.raises(SystemExit):
        step(PIECE | {"seed": 8}, name="instruct")
    events.EventLog(store.events).write(EventType.RUN_FINISHED, exit_code=70)
    mirror.copy_once(store)
    mirror.copy_once(store)  # nothing is copied twice

    tracking = Tracking(store)
    root, align, instruct = tracking.root("run-1"), tracking.child("run-1", "align"), tracking.child("run-1", "instruct")
    run = tracking.client.get_run(align)
    assert run.data.params["stage.rates.connector"] == "0.001"
    assert run.data.params["stage.data.0.kinds"] == '["caption"]'
    assert [(m.step, m.value) for m in tracking.client.get_metric_history(align, "loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (0, 0.5),
    ]
    assert [file.path for file in tracking.client.list_artifacts(align, "artifact")] == ["artifact/manifest.json"]
    assert run.info.status == "FINISHED"
    failed = tracking.client.get_run(instruct)
    assert (failed.info.status, failed.data.tags["biovlm.exit_code"]) == ("FAILED", "70")
    assert tracking.client.get_run(root).info.status == "FAILED"


def test_a_reused_step_names_the_run_that_made_its_result(store, step, monkeypatch):
    step(PIECE)
    mirror.copy_once(store)
    maker = Tracking(store).child("run-1", "align")
    monkeypatch.setenv("BIOVLM_RUN_ID", "run-2")
    step(PIECE)
    later = store.from_environment()
    mirror.copy_once(later)
    tags = Tracking(later).client.get_run(Tracking(later).child("run-2", "align")).data.tags
    assert (tags["biovlm.reused"], tags["biovlm.made_by"]) == ("true", maker)


def test_data_sets_are_inputs_with_digests(store):
    tracking = Tracking(store)
    run = tracking.child("run-1", "align")
    sets = {"phantom": {"uri": "data/phantom", "digest": "a" * 64, "revision": "c0ffee", "licence": "CC0-1.0"}}
    tracking.inputs(run, sets, "training")
    (found,) = tracking.client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("phantom", "a" * 36)
    assert {tag.key: tag.value for tag in found.tags}["sha256"] == "a" * 64


def test_the_champion_is_read_without_mlflow_as_mlflow_reads_it(store):
    tracking = Tracking(store)
    assert peek.version_tags(store.tracking_uri, "m", "champion") is None is tracking.version_tags("m", "champion")
    assert champion.present(store, "m")[0].is_none
    tags = {champion.CHECKPOINT_DIGEST: "d" * 64, champion.CHECKPOINT_PATH: "steps/train/k", champion.AGAINST: "none"}
    tracking.client.create_registered_model("m")
    for _ in range(2):
        tracking.client.create_model_version("m", source="/x", tags=tags)
    tracking.client.set_registered_model_alias("m", "champion", "2")
    assert peek.version_tags(store.tracking_uri, "m", "champion") == tracking.version_tags("m", "champion")
    assert peek.store_id(store.tracking_uri, store.experiment) == tracking.store_id
    found, mark = champion.present(store, "m")
    assert (found.digest, found.folder, found.facts["version"], mark) == (
        "d" * 64,
        store.store / "steps/train/k",
        "2",
        tracking.store_id,
    )


def test_a_version_that_biovlm_did_not_register_is_no_champion(store):
    assert champion.as_reference(store, {"version": "1"}).is_none


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "http://127.0.0.1:9/mlflow"])
def test_a_store_that_does_not_answer_is_said_within_seconds(settings, uri):
    began = time.monotonic()
    for ask in (lambda: peek.store_id(uri, "biovlm"), lambda: Tracking(dataclasses.replace(settings, tracking_uri=uri))):
        with pytest.raises(MissingInputError, match="does not answer") as error:
            ask()
        assert "MLFLOW_TRACKING_URI" in error.value.hint
    assert time.monotonic() - began < 15


def test_credentials_in_the_address_are_not_repeated():
    with pytest.raises(MissingInputError) as error:
        peek.store_id("http://user:secret@127.0.0.1:9", "biovlm")
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_said(settings):
    settings.home.mkdir(parents=True)
    (settings.home / "mlflow.db").write_text("not a database, " * 100)
    with pytest.raises(MissingInputError, match="not a database"):
        peek.store_id(settings.tracking_uri, "biovlm")

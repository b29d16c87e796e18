"""What a launcher and its heavy work leave on their desk in the bucket, and how a launcher works with any back end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from components.platform import code, launcher, letter
from components.platform.desk import COURIER_SECONDS, Courier, Desk
from components.platform.events import EventLog, EventType
from components.platform.heavy import Result
from components.platform.reference import Reference
from components.platform.retries import Attempts
from components.platform.settings import Settings
from components.platform.step import run_step
from components.platform.store import Source
from components.platform.task import Places, Task
from model import manifest
from model.config import Resources
from model.errors import BiovlmError, ConfigError, DataError, DivergedError, InternalError


@pytest.fixture
def desk(shared, client):
    return Desk.of(shared, "run-1", "k" * 64)


def places(folder):
    return Places(folder, folder / "final", folder / "events.jsonl", folder / "attempts", "")


def task(**changes):
    values = {"function": "a.b", "job": {}, "artifacts": {}, "resources": Resources(), "kind": "train", "key": "k" * 64}
    return Task(**{**values, "step": "align", "run_id": "run-1", "attempt": 1, **changes})


def delivered(desk):
    return [(number, [event.done for event in events]) for number, events in desk.events_after(0)]


def test_events_are_delivered_once_in_order_also_by_the_courier_of_a_worker_that_was_started_again(desk, tmp_path):
    log = EventLog(tmp_path / "events.jsonl", "align")
    with Courier(desk, places(tmp_path), leads=True):
        log.write(EventType.PROGRESS, done=1)
        log.write(EventType.PROGRESS, done=2)
    with Courier(desk, places(tmp_path), leads=True):
        log.write(EventType.PROGRESS, done=3)
    assert delivered(desk) == [(1, [1, 2]), (2, [3])]
    assert [number for number, _ in desk.events_after(1)] == [2]


def test_a_worker_on_another_node_delivers_behind_what_was_delivered(desk, tmp_path):
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        with Courier(desk, places(tmp_path / node), leads=True):
            EventLog(tmp_path / node / "events.jsonl", "align").write(EventType.PROGRESS, done=ord(node))
    assert delivered(desk) == [(1, [97]), (2, [98])]


def test_only_rank_0_delivers(desk, tmp_path):
    with Courier(desk, places(tmp_path), leads=False):
        EventLog(tmp_path / "events.jsonl", "align").write(EventType.PROGRESS, done=1)
    assert delivered(desk) == []


def test_the_first_letter_stays_and_reaches_the_workers_of_all_nodes(desk, tmp_path):
    for node, error in (("a", DivergedError("loss is nan")), ("b", InternalError("a later one"))):
        with Courier(desk, places(tmp_path / node), leads=False):
            (tmp_path / node / letter.NAME).unlink(missing_ok=True)
            letter.write(tmp_path / node, error)
    with Courier(desk, places(tmp_path / "c"), leads=False), pytest.raises(DivergedError, match="loss is nan"):
        letter.raise_letter(tmp_path / "c")


def test_a_stop_reaches_the_workers_and_is_taken_back_by_the_next_attempt(desk, tmp_path, settings, shared, monkeypatch):
    monkeypatch.setenv("BIOVLM_STORE", shared)
    with Courier(desk, places(tmp_path), leads=False):
        desk.ask_stop()
        deadline = time.monotonic() + 20 * COURIER_SECONDS
        while not (tmp_path / "stop").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "stop").exists()
    desk.begin(task(), Settings.from_environment())
    assert not desk.stop_asked()


def test_what_an_earlier_job_left_is_taken_away_but_not_the_count_of_attempts(desk, tmp_path):
    for name in ("letter.json", "attempts"):
        (tmp_path / name).write_text("x")
        desk.push(name, tmp_path / name)
    desk.write_result(Result(75, "stopped"))
    desk.clear()
    assert desk.result() is None
    for name in ("letter.json", "attempts"):
        desk.pull(name, tmp_path / "back" / name)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["attempts"]


def test_the_count_of_attempts_outlives_a_worker_that_is_killed(desk, tmp_path):
    courier = Courier(desk, places(tmp_path / "a"), leads=True)
    courier.__enter__()  # and never leaves
    Attempts(tmp_path / "a" / "attempts", "run-1").begin()
    deadline = time.monotonic() + 20 * COURIER_SECONDS
    while "attempts" not in desk._objects.names("") and time.monotonic() < deadline:
        time.sleep(0.05)
    with Courier(desk, places(tmp_path / "b"), leads=True):
        assert Attempts(tmp_path / "b" / "attempts", "run-1").counted == 1


def test_a_spec_of_another_version_and_an_address_of_none_are_letters(desk, client, shared):
    bucket, _, prefix = desk.spec_uri.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=prefix, Body=json.dumps({"version": 2}).encode())
    with pytest.raises(DataError, match="no spec"):
        Desk.at(desk.spec_uri).spec()
    for wrong in ("spec.json", "s3://b/other.json"):
        with pytest.raises(ConfigError):
            Desk.at(wrong)


TRAIN_IMAGE = """
import sys
for name in ("kfp", "mlflow", "dvc", "kubernetes"):
    sys.modules[name] = None  # importing it fails
import components.platform.remote, components.platform.shared_store, components.train.worker, components.evaluate.worker
"""


def test_the_entrypoint_and_the_workers_need_nothing_that_the_train_image_lacks():
    done = subprocess.run([sys.executable, "-c", TRAIN_IMAGE], cwd=code.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------- launcher


class Cluster:
    """A back end that does the work in this process: what the entrypoint does, without Ray."""

    def __init__(self, pod, act):
        self.pod, self.act, self.runs = pod, act, 0

    def run(self, work, tell, result):
        said = result()
        if said is not None and said.exit_code == 0:
            return
        self.runs += 1
        desk = Desk.at(work.spec_uri)
        try:
            self.act(desk, desk.spec())
        except BiovlmError as error:
            desk.write_result(Result(int(error.exit_code), error.message, error.hint))
            raise
        desk.write_result(Result(0))


@pytest.fixture
def step(settings, shared, client, tmp_path, monkeypatch):
    """A heavy step, done by `act` in a cluster."""
    monkeypatch.setenv("BIOVLM_STORE", shared)
    monkeypatch.setenv("BIOVLM_RAY_ADDRESS", "http://127.0.0.1:8265")

    def run(act, name="align", **inputs):
        cluster = Cluster(tmp_path / "pod", act)
        monkeypatch.setattr(launcher, "backend", lambda settings: cluster)

        def produce(work):
            sources = {"sets": {"mini": Source(kind="set", uri="data/mini", digest="d")}}
            launcher.run(work.task("a.b", {"piece": 1}, sources, Resources()), work)

        run_step("train", name, {"seed": 0}, inputs, str(tmp_path / "out.json"), produce, heavy=True)
        return cluster

    return run


def publish(tmp_path, monkeypatch):
    """An `act` that makes the artifact as a node would."""

    def act(desk, spec):
        from components.platform.shared_store import SharedStore

        store = SharedStore(tmp_path / "pod" / "store", spec.store)
        final = store.folder("train", spec.task.key)
        with manifest.commit(final, "checkpoint", facts={"figures": {}}) as folder:
            (folder / "weights").write_text("w")
        store.publish(store.uri(final))
        log = EventLog(tmp_path / "pod-events", "align", spec.task.attempt)
        log.write(EventType.PROGRESS, done=3, total=3, unit="steps", metrics={"loss": 0.5})
        desk.deliver((tmp_path / "pod-events").read_bytes(), 0)

    return act


def test_a_step_hands_its_work_to_the_cluster_and_finds_result_and_events(step, happened, settings, tmp_path, monkeypatch):
    step(publish(tmp_path, monkeypatch))
    assert happened() == ["step_started", "progress", "finished"]
    assert not list(settings.store.glob("steps/train/*/weights"))  # the launcher needs none
    again = step(publish(tmp_path, monkeypatch))
    assert (again.runs, happened()[-1]) == (0, "reused")


def test_the_letter_of_the_work_is_the_letter_of_the_step(step, happened):
    def act(desk, spec):
        raise DivergedError("loss is nan", "lower the learning rate")

    with pytest.raises(SystemExit) as ended:
        step(act)
    last = happened(types_only=False)[-1]
    assert (ended.value.code, last.message, last.hint) == (79, "loss is nan", "lower the learning rate")


def test_a_sigterm_to_the_step_asks_the_work_to_stop_and_waits_for_it(step):
    asked = []

    def act(desk, spec):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not desk.stop_asked() and time.monotonic() < deadline:
            time.sleep(0.05)
        asked.append(desk.stop_asked())
        raise DivergedError("ended by itself")

    with pytest.raises(SystemExit) as ended:
        step(act)
    assert (asked, ended.value.code) == ([True], 79)


def test_a_job_that_says_done_and_published_nothing_is_not_believed(step, happened):
    with pytest.raises(SystemExit) as ended:
        step(lambda desk, spec: None)
    assert ended.value.code == 66
    assert "says done" in happened(types_only=False)[-1].message


def test_a_result_of_0_whose_artifact_is_gone_is_not_believed_by_the_next_attempt(step, shared, client, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        step(lambda desk, spec: None)
    assert step(publish(tmp_path, monkeypatch)).runs == 1


def test_no_work_is_begun_whose_inputs_are_not_in_the_shared_store(step, happened, settings, tmp_path, monkeypatch):
    gone = Reference(kind="checkpoint", uri=str(settings.store / "steps" / "train" / "gone"), digest="d" * 64)
    gone.write(tmp_path / "gone.json", settings.store)
    begun = []
    with pytest.raises(SystemExit) as ended:
        step(lambda desk, spec: begun.append(spec), parent=str(tmp_path / "gone.json"))
    assert (ended.value.code, begun) == (66, [])
    assert "not whole in the shared store" in happened(types_only=False)[-1].message


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"BIOVLM_LAUNCHER": "mesos"}, "BIOVLM_LAUNCHER is 'mesos'"),
        ({"BIOVLM_LAUNCHER": "jobs", "BIOVLM_STORE": "s3://b/p"}, "BIOVLM_RAY_ADDRESS is ''"),
        ({"BIOVLM_RAY_ADDRESS": "http://h:8265"}, "no BIOVLM_STORE"),
        ({"BIOVLM_LAUNCHER": "kuberay"}, "no BIOVLM_STORE"),
    ],
)
def test_a_launcher_that_lacks_something_is_refused(tmp_path, environment, words):
    with pytest.raises(ConfigError, match=words):
        Settings.from_environment({"BIOVLM_HOME": str(tmp_path), **environment})

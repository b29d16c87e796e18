"""A home of one test, and a step that counts how often it really ran."""

from __future__ import annotations

import shutil
from functools import partial

import boto3
import pytest

from components.platform import events, exports, reference
from components.platform.impact import ask
from components.platform.settings import Settings
from components.platform.step import run_step
from components.platform.tracking import Tracking
from model import manifest
from tests import s3
from tests.components.promotions import Registry, make_export
from tests.registry_world import small_world


@pytest.fixture
def settings(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for name in ("BIOVLM_EVENTS", "BIOVLM_RAY", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "BIOVLM_TRACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BIOVLM_HOME", str(home))
    monkeypatch.setenv("BIOVLM_RUN_ID", "run-1")
    monkeypatch.setenv("BIOVLM_MIRRORED", "1")
    return Settings.from_environment()


@pytest.fixture
def happened(settings):
    """Types of the events so far, or the events themselves."""

    def read(types_only=True):
        found = events.read(settings.events)
        return [str(event.type) for event in found] if types_only else found

    return read


class Counting:
    """A step that writes one file; `makes` is called instead if given."""

    def __init__(self, folder):
        self.folder, self.runs, self.makes = folder, 0, None

    def __call__(self, piece, kind="train", name="align", **inputs):
        out = self.folder / "out" / f"{name}.json"
        run_step(kind, name, piece, inputs, str(out), self.produce)
        return reference.read(out, Settings.from_environment().store)

    def produce(self, work):
        self.runs += 1
        if self.makes is not None:
            self.makes(work)
        with manifest.commit(work.final, "checkpoint", work.parents, {"figures": {"loss": 0.5}}) as folder:
            (folder / "weights").write_text(str(sorted(work.piece.items())))


@pytest.fixture
def step(settings, tmp_path):
    return Counting(tmp_path)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An SQLite store that is made once: MLflow's migrations take seconds."""
    home = tmp_path_factory.mktemp("mlflow")
    Tracking(Settings.from_environment({"BIOVLM_HOME": str(home)}))
    return home / "mlflow.db"


@pytest.fixture
def store(settings, empty_store):
    """`settings`, with a tracking store that has an experiment and nothing else."""
    settings.home.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_store, settings.home / "mlflow.db")
    return settings


@pytest.fixture
def registry(store, tmp_path, monkeypatch):
    """A registry with the two steps that write into it."""
    monkeypatch.setattr(exports, "ensure", partial(make_export, settings=store))
    return Registry(store, tmp_path)


@pytest.fixture(scope="session")
def server():
    """Address of an S3 server."""
    server = s3.server()
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def client(server, monkeypatch, request):
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    client = boto3.client("s3")
    client.create_bucket(Bucket=f"b{abs(hash(request.node.nodeid))}")
    return client


@pytest.fixture
def shared(client, request):
    """Address of an empty prefix in a bucket of this test."""
    return f"s3://b{abs(hash(request.node.nodeid))}/team"


@pytest.fixture(scope="module")
def built(tmp_path_factory, empty_store):
    """The world, and an index of it that no test changes."""
    home = tmp_path_factory.mktemp("world")
    shutil.copy(empty_store, home / "mlflow.db")
    settings = Settings.from_environment({"BIOVLM_HOME": str(home)})
    world = small_world(settings)
    ask.ask(settings, (), lambda line: None)
    return world


@pytest.fixture
def own(built, settings):
    """A copy of the world that a test may change."""
    shutil.copytree(built.settings.home, settings.home)
    return settings

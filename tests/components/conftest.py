"""A home of one test, and a step that counts how often it really ran."""

from __future__ import annotations

import shutil

import pytest

from components.platform import events, reference
from components.platform.settings import Settings
from components.platform.step import run_step
from components.platform.tracking import Tracking
from model import manifest


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
        return reference.read(out)

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

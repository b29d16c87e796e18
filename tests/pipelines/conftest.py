"""One home for all runs of this folder: what one test computed, the next may reuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.platform import events
from components.platform.settings import CHECKOUT, Settings
from tests.pipelines import micro
from tests.standins.kfp import KFP_SCHEMA, serving


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home whose data registry holds the micro data set and its base models."""
    folder = tmp_path_factory.mktemp("home")
    micro.fill(folder)
    return folder


@pytest.fixture
def kfp(monkeypatch, tmp_path):
    """A KFP API server, named by the environment as a person would."""
    if not KFP_SCHEMA.is_file():
        pytest.skip(f"no published KFP API at {KFP_SCHEMA}: BIOVLM_SCHEMAS names the folder of schemas")
    from pipelines import cluster, submit

    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("launcher", "train"):
        monkeypatch.setenv(f"BIOVLM_{name.upper()}_IMAGE", f"registry.example/biovlm-{name}@sha256:{'a' * 64}")
    with serving(KFP_SCHEMA) as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.address)
        yield server.state


@pytest.fixture
def settings(home):
    return Settings.from_environment({"BIOVLM_HOME": str(home)})


COMMAND = """
import json, sys
from pipelines import local
from tests.pipelines import micro
result = local.run(micro.recipe(**json.loads(sys.argv[1])), lambda event: None)
print(result.model_dump_json())
raise SystemExit(result.exit_code)
"""


class Run:
    """`biovlm run` of the micro recipe, as the process of its own that it is."""

    def __init__(self, home: Path, changes: str, **environment: str) -> None:
        self.home, self.before = home, set((home / "runs").glob("*"))
        env = {**os.environ, "BIOVLM_HOME": str(home), **environment}
        for name in ("BIOVLM_RUN_ID", "BIOVLM_EVENTS", "BIOVLM_RAY"):
            env.pop(name, None)
        command = [sys.executable, "-c", COMMAND, changes]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CHECKOUT, env=env)

    @property
    def folder(self) -> Path | None:
        return next(iter(set((self.home / "runs").glob("*")) - self.before), None)

    def wait_for(self, condition, seconds=240):
        """The first event for which `condition` holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in events.read(self.folder / "events.jsonl") if self.folder else ():
                if condition(event):
                    return event
                assert event.type != "failed", f"{event.step}: {event.message}"
            assert self.process.poll() is None, "the run ended before"
            time.sleep(0.05)
        raise AssertionError("the run did not get so far")

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds=280):
        """Exit code and what it printed."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
def start(home):
    """Starts runs; none outlives its test."""
    started = []

    def run(changes="{}", **environment):
        started.append(Run(home, changes, **environment))
        return started[-1]

    yield run
    for one in started:
        if one.process.poll() is None:
            one.interrupt()
            one.end()

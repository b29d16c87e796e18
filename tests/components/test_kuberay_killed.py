"""A launcher that is killed, at any moment, leaves at most one RayJob; the next attempt adopts it, or `reap` removes it.

A real process runs the back end against the stand-in and is killed with SIGKILL when the server has seen so many of its requests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.platform import pools
from components.platform.heavy import Result
from components.platform.kuberay import manifest
from components.platform.kuberay.reaper import RunState
from pipelines import reap
from tests.standins.kuberay import RUNNING, SUCCEEDED, KubeRay, admit, status
from tests.standins.work import SITE, Clock, back_end, way_to, work

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = """
import sys
from types import SimpleNamespace
from tests.standins.work import back_end, work
back_end(SimpleNamespace(address=sys.argv[1])).run(work(), print, lambda: None)
"""
SCRIPT = (status("Suspended"), status("Suspended"), admit(), RUNNING, *[RUNNING] * 10)
DEADLINE = 60


class Watched(KubeRay):
    """The stand-in that holds the request number `last` and all after it, before or after it is carried out, until the end of `dead`."""

    def __init__(self, last, after):
        super().__init__(SCRIPT)
        self.last, self.after = last, after
        self.held, self.dead = threading.Event(), threading.Event()

    def hold(self, after):
        if not self.dead.is_set() and len(self.requests) >= self.last and after == self.after:
            self.held.set()
            self.dead.wait(DEADLINE)


@pytest.mark.parametrize(
    ("failed_before", "last", "after"),
    [
        pytest.param(False, 3, False, id="before the job is created"),
        pytest.param(False, 3, True, id="created, and the answer lost"),
        pytest.param(False, 8, False, id="while it waits"),
        pytest.param(True, 5, True, id="after a failed job of before is deleted"),
        pytest.param(True, 8, True, id="after another took its place"),
    ],
)
def test_a_killed_launcher_leaves_at_most_one_job_and_reap_removes_it(failed_before, last, after):
    with Watched(last, after) as server:
        if failed_before:
            fail_earlier(server)
        kill_when_held(server)
        server.script = [admit(), RUNNING, SUCCEEDED]
        made = len(server.created)
        assert len(server.jobs) <= 1
        back_end(server, clock=Clock()).run(work(), print, lambda: Result(0) if server.jobs and not server.script else None)
        assert len(server.created) == 1
        assert made in (0, 1)
        assert len(server.jobs) == 1
        reap.reap(way_to(server), lambda run: RunState.OVER)
        assert all(body["metadata"].get("deletionTimestamp") for body in server.jobs.values())


def fail_earlier(server):
    body = server.add(manifest.ray_job(work(), "l4", pools.load()["l4"], SITE))
    body["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "", "reason": "PreRunningDeadlineExceeded"}
    server.created.clear()


def kill_when_held(server):
    """Start a launcher and kill it while the server holds its request; then the server goes on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, server.address], cwd=ROOT, env=environment)
    try:
        assert server.held.wait(DEADLINE)
    finally:
        process.kill()
        process.wait()
    server.dead.set()

"""The preStop hook of a Ray worker's pod, on real processes that are titled as Ray titles its workers."""

from __future__ import annotations

import os
import subprocess
import sys

from components.platform.kuberay import prestop

SAVES = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


def started(code, title):
    process = subprocess.Popen(
        [title, "-c", code], executable=sys.executable, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHOME": ""}
    )
    assert process.stdout.readline() == b"up\n"
    return process


def test_workers_are_asked_to_stop_and_others_are_left(monkeypatch):
    worker, other = started(SAVES, "ray::Worker.run"), started(SAVES, "python")
    own = {worker.pid, other.pid}
    every = prestop.workers
    # Another Ray may run on the machine of the test.
    monkeypatch.setattr(prestop, "workers", lambda: [pid for pid in every() if pid in own and worker.poll() is None])
    try:
        assert worker.pid in prestop.workers()
        assert prestop.stop(30) == 0
        assert worker.wait(30) == 75
        assert other.poll() is None
    finally:
        for process in (worker, other):
            process.kill()
            process.wait()


def test_a_worker_that_does_not_stop_holds_the_pod_no_longer_than_allowed(monkeypatch):
    worker = started(STUBBORN, "ray::Worker.run")
    every = prestop.workers
    monkeypatch.setattr(prestop, "workers", lambda: [pid for pid in every() if pid == worker.pid])
    try:
        assert prestop.stop(0.5) == 1
    finally:
        worker.kill()
        worker.wait()

"""A Ray cluster of one node with its dashboard and Jobs API, which want a token: what a team finds at BIOVLM_RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

NEEDED = ("aiohttp-cors", "opencensus", "prometheus-client", "colorful", "smart-open", "virtualenv")
"""What ray[default] brings beside ray[train]."""
STARTED, TOO_SLOW = "Ray runtime started", "timed out during startup"
TRIES, START_SECONDS = 3, 120


def missing() -> list[str]:
    """Packages without which Ray starts no dashboard."""
    return [name for name in NEEDED if not list(importlib.metadata.distributions(name=name))]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class RayCluster:
    """Started by `start`, ended by `stop`; `home` is the home of its node."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._log, self.home = folder / "ray.log", folder / "node"
        gcs, self.port, agent, agent_grpc, client, metrics = free_ports(6)
        self.address, self.gcs = f"http://127.0.0.1:{self.port}", f"127.0.0.1:{gcs}"
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self._temporary = tempfile.mkdtemp(prefix="bv-", dir="/tmp")
        self._options = {
            "--port": gcs,
            "--dashboard-port": self.port,
            "--dashboard-host": "127.0.0.1",
            "--dashboard-agent-listen-port": agent,
            "--dashboard-agent-grpc-port": agent_grpc,
            "--ray-client-server-port": client,
            "--metrics-export-port": metrics,
            "--node-ip-address": "127.0.0.1",
            "--num-cpus": 2,
            "--object-store-memory": 100 * 2**20,
            "--temp-dir": self._temporary,
        }
        root = str(Path(__file__).resolve().parents[2])
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "BIOVLM_HOME": str(self.home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        for name in ("BIOVLM_STORE", "BIOVLM_RAY", "BIOVLM_EVENTS", "BIOVLM_RUN_ID", "BIOVLM_LAUNCHER", "BIOVLM_RAY_ADDRESS"):
            self._environment.pop(name, None)

    def start(self) -> None:
        """Start the head, again if its node was not up in the 30 s that Ray gives it; a busy machine takes longer."""
        for tried in range(1, TRIES + 1):
            if self._begin():
                return
            said = self._log.read_text()
            assert TOO_SLOW in said, said
            assert tried < TRIES, f"Ray's node was not up in {TRIES} tries:\n{said}"
            self.stop()

    def _begin(self) -> bool:
        """Start the head and wait until node and dashboard are there; False if the head ended."""
        options = [part for name, value in self._options.items() for part in (name, str(value))]
        command = (
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--include-dashboard=true",
            *options,
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while STARTED not in self._log.read_text() or not self._answers():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"the dashboard did not come: {self._log.read_text()}"
            time.sleep(0.5)
        return True

    def _answers(self) -> bool:
        request = urllib.request.Request(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token.read_text()}"}
        )
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status == 200
        return False

    def stop(self) -> None:
        """End the head and all that it started, by its process group and by Ray's own death watch."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)

"""Questions to MLflow's server as the cluster's manifest starts it: with its login, and by the service's name."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from subprocess import Popen
from typing import Any

from tests.manifests import ROOT

SETTINGS = ROOT / "infra" / "kubernetes" / "base" / "tracking" / "basic_auth.ini"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
ADMIN, PASSWORD = "admin", "only for this test"
START_SECONDS = 300


def ask(address: str, path: str, body: Any = None, password: str = "", host: str = "mlflow:5000") -> tuple[int, bytes]:
    """Status and body of one request, as the administrator if a password is given. OSError: nobody answers."""
    request = urllib.request.Request(f"{address}{path}", headers={"Host": host})
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{ADMIN}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def until_it_answers(address: str, server: Popen[bytes], log: Path) -> None:
    """Wait for the server; AssertionError with the end of its log if it ends or does not come."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            assert ask(address, "/health")[0] == 200
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)

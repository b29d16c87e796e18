"""MLflow's server, started with the very command of the manifest, asks everybody who they are (faults F9 and F10).

Skipped where MLflow's login is not installed (`mlflow[auth]`). Not proven here: PostgreSQL behind it, which the command names and this test
replaces by SQLite.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.manifests import ROOT, find, rendered

SETTINGS = ROOT / "infra" / "kubernetes" / "base" / "tracking" / "basic_auth.ini"
PASSWORD = "only for this test"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("flask_wtf", "prometheus_flask_exporter"))),
        reason="mlflow[auth] and prometheus-flask-exporter are not installed: MLflow's login is not tried",
    ),
]


def command(folder: Path, port: int) -> list[str]:
    """The container's command, with places of this machine."""
    here = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
        "--expose-prometheus": str(folder / "metrics"),
    }
    told = find(rendered("gpu"), "Deployment mlflow")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert told[:2] == ["mlflow", "server"]
    pairs = [word.split("=", 1) for word in told[2:]]
    return [sys.executable, "-m", "mlflow", "server", *(f"{name}={here.get(name, value)}" for name, value in pairs)]


def start(folder: Path, port: int, **login: str) -> subprocess.Popen:
    settings = folder / "basic_auth.ini"
    settings.write_text(SETTINGS.read_text().replace("postgresql+psycopg2:///mlflow_auth", f"sqlite:///{folder}/auth.db"))
    env = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
        **login,
    }
    with open(folder / "log", "w") as log:
        return subprocess.Popen(command(folder, port), env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def ask(port, path, body=None, password=None, host="mlflow:5000"):
    """The status of one request."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="GET" if body is None else "POST")
    request.add_header("Host", host)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    server = start(folder, number, MLFLOW_AUTH_ADMIN_USERNAME="admin", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD)
    deadline = time.monotonic() + 300
    try:
        while True:
            try:
                assert ask(number, "/health") == 200
                break
            except urllib.error.URLError:
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "MLflow did not answer in five minutes"
                time.sleep(0.5)
        yield number
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


CREATE = "/api/2.0/mlflow/experiments/create"


def test_who_gives_no_name_may_neither_write_nor_read(port):
    assert ask(port, CREATE, {"name": "anonymous"}) == 401
    for path in ("/", "/metrics", "/api/2.0/mlflow-artifacts/artifacts", "/api/2.0/mlflow/experiments/search?max_results=1"):
        assert ask(port, path) == 401, path


def test_the_password_of_old_defaults_opens_nothing(port):
    assert ask(port, CREATE, {"name": "default"}, "password1234") == 401


def test_the_administrator_may_write(port):
    assert ask(port, CREATE, {"name": "known"}, PASSWORD) == 200


def test_a_request_for_another_host_is_refused(port):
    assert ask(port, "/api/2.0/mlflow/experiments/search?max_results=1", password=PASSWORD, host="evil.example.org") == 403


def test_without_an_administrator_the_server_does_not_start(tmp_path):
    server = start(tmp_path, 1)
    try:
        deadline = time.monotonic() + 300
        while "needs a username for the admin user" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)

"""MLflow's server, started with the very command of the manifest, asks everybody who they are (faults F9 and F10), and preflight finds out
before a run what a login may write.

Skipped where MLflow's login is not installed (`mlflow[auth]`). Not proven here: PostgreSQL behind it, which the command names and this test
replaces by SQLite.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.platform.settings import Settings
from components.platform.tracking import Tracking
from components.preflight import step as preflight
from model.errors import RefusedError
from tests.manifests import find, rendered
from tests.pipelines import micro
from tests.tracking_pod import ADMIN, PASSWORD, SEARCH, SETTINGS, ask, until_it_answers

pytestmark = [
    pytest.mark.lane,
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
    more = {"--allowed-hosts": f",127.0.0.1:{port}"}  # MLflow's own client cannot come by another name
    told = find(rendered("gpu"), "Deployment mlflow")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert told[:2] == ["mlflow", "server"]
    pairs = [word.split("=", 1) for word in told[2:]]
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(f"{name}={here.get(name, value)}{more.get(name, '')}" for name, value in pairs),
    ]


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


def status(port, path, body=None, password="", host="mlflow:5000"):
    """The status of one request."""
    return ask(f"http://127.0.0.1:{port}", path, body, password, host)[0]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    server = start(folder, number, MLFLOW_AUTH_ADMIN_USERNAME=ADMIN, MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD)
    try:
        until_it_answers(f"http://127.0.0.1:{number}", server, folder / "log")
        yield number
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


CREATE = "/api/2.0/mlflow/experiments/create"


def test_who_gives_no_name_may_neither_write_nor_read(port):
    assert status(port, CREATE, {"name": "anonymous"}) == 401
    for path in ("/", "/metrics", "/api/2.0/mlflow-artifacts/artifacts", SEARCH):
        assert status(port, path) == 401, path


def test_the_password_of_old_defaults_opens_nothing(port):
    assert status(port, CREATE, {"name": "default"}, "password1234") == 401


def test_the_administrator_may_write(port):
    assert status(port, CREATE, {"name": "known"}, PASSWORD) == 200


@pytest.fixture
def login(port, monkeypatch, tmp_path):
    """Asks, as a user of that password, whether a run may write to an experiment and a registered model."""
    for name in ("BIOVLM_RUN_ID", "BIOVLM_EVENTS", "BIOVLM_POD_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")

    def as_user(user, password, experiment="of the steps"):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
        return Tracking(Settings.from_environment())

    return as_user


USER = "/api/2.0/mlflow/users/create"
STEPS = ("steps", "as long as MLflow wants it")


def test_what_a_login_may_not_write_is_told_before_a_run_with_the_remedy(port, login, tmp_path):
    assert status(port, USER, {"username": STEPS[0], "password": STEPS[1]}, PASSWORD) == 200
    admin = login("admin", PASSWORD, "of the admin")
    admin.client.create_registered_model("of-the-admin")
    mine = login(*STEPS)
    mine.try_writing("new")  # made and removed
    assert mine.registered("new") is None
    assert [found.name for found in admin.client.search_registered_models()] == ["of-the-admin"]
    mine.client.create_registered_model("mine")
    mine.try_writing("mine")
    with pytest.raises(RefusedError, match="write to the registered model of-the-admin") as refused:
        mine.try_writing("of-the-admin")
    assert "biovlm-tracking" in refused.value.hint
    with pytest.raises(RefusedError, match="write to the experiment of the admin"):
        login(*STEPS, "of the admin").try_writing("mine")
    with pytest.raises(RefusedError, match="does not let this login open the experiment"):
        login("steps", "another word, long enough")
    assert PASSWORD not in str(refused.value)


def test_preflight_ends_a_run_whose_version_nobody_could_register(login, tmp_path, capsys):
    login(*STEPS)
    recipe = micro.recipe(registered_model="of-the-admin").model_dump_json()
    with pytest.raises(SystemExit) as ended:
        preflight.run(recipe, str(tmp_path / "champion.json"))
    assert (ended.value.code, "write to the registered model of-the-admin" in capsys.readouterr().err) == (77, True)


def test_a_request_for_another_host_is_refused(port):
    assert status(port, SEARCH, password=PASSWORD, host="evil.example.org") == 403


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

"""The tracking server's pod on this machine: our image with the very commands of the manifest, confined as there, over a real PostgreSQL.

Not shown: the bucket, which no request here touches, and the network policies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from pipelines.grounds import free_port
from tests import postgres
from tests.manifests import find, rendered
from tests.tracking_pod import ADMIN, PASSWORD, SEARCH, SETTINGS, ask, until_it_answers

pytestmark = [
    pytest.mark.docker,
    pytest.mark.lane,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("BIOVLM_DOCKER") != "1", reason="the docker lane runs this: make test-docker"),
]
IMAGE = "biovlm-mlflow:latest"
CONFINED = (
    *("--rm", "--init", "--network", "host", "--user", "10001:10001"),
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)


def containers(kind):
    """The containers of a kind in the pod."""
    return find(rendered("gpu"), "Deployment mlflow")["spec"]["template"]["spec"][kind]


def docker(folder, command, name, **values):
    """How the pod's container is started; values of variables come from docker's own environment."""
    known = {"HOME": "/tmp", "PGHOST": str(folder), "PGUSER": postgres.USER, **values}
    mounts = (f"type=bind,source={folder},target={folder}", f"type=bind,source={folder / 'etc'},target=/etc/mlflow,readonly")
    told = [part for key in known for part in ("--env", key)]
    told += [part for mount in mounts for part in ("--mount", mount)]
    return (
        ("docker", "run", *CONFINED, "--name", name, "--tmpfs", "/tmp:mode=1777", *told, IMAGE, *command),
        {**os.environ, **known},
    )


@pytest.fixture(scope="module")
def server():
    """PostgreSQL after the pod's init container ran against it; gives it and what that said."""
    if not postgres.is_installed():
        pytest.skip("PostgreSQL is not installed: the image is not tried over it")
    with postgres.running() as found:
        found.call("createdb", "--host", str(found.home), "--username", postgres.USER, "mlflow_auth")
        (found.home / "etc").mkdir()
        shutil.copy(SETTINGS, found.home / "etc" / "basic_auth.ini")
        found.home.chmod(0o755)  # the container is another user
        command, env = docker(found.home, containers("initContainers")[0]["command"], "biovlm-test-upgrade")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        yield found


@pytest.fixture(scope="module")
def address(server, tmp_path_factory):
    """Of the server that the manifest's command started."""
    port, log = free_port(), tmp_path_factory.mktemp("pod") / "log"
    here = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    command = [here.get(word, word) for word in containers("containers")[0]["command"]]
    login = {"MLFLOW_AUTH_ADMIN_USERNAME": ADMIN, "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    more = {
        "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/basic_auth.ini",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD,
        "AWS_REGION": "us-east-1",
    }
    command, env = docker(server.home, command, "biovlm-test-mlflow", **login, **more)
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    found = f"http://127.0.0.1:{port}"
    try:
        until_it_answers(found, process, log)
        yield found
    finally:
        subprocess.run(("docker", "stop", "--time", "20", "biovlm-test-mlflow"), capture_output=True, check=False)
        process.wait(60)


def test_the_pod_makes_its_tables_and_answers_whom_it_knows(server, address):
    assert ask(address, SEARCH)[0] == 401
    status, body = ask(address, SEARCH, password=PASSWORD)
    assert (status, json.loads(body)["experiments"][0]["artifact_location"]) == (200, "mlflow-artifacts:/0")
    assert server.ask("SELECT name FROM experiments") == ["Default"]
    assert server.ask("SELECT username FROM users", database="mlflow_auth") == [ADMIN]


def test_the_pod_answers_by_the_services_names_alone(address):
    assert ask(address, SEARCH, password=PASSWORD, host="mlflow.biovlm-tracking.svc:5000")[0] == 200
    assert ask(address, SEARCH, password=PASSWORD, host="evil.example.org")[0] == 403

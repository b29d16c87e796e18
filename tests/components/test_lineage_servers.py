"""`lineage verify` as production has it: MLflow's server over PostgreSQL, its artifacts, the store and the ledger in S3.

MLflow and PostgreSQL are real; the bucket is moto's. A byte is changed in the bucket itself, behind the back of all of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import boto3
import pytest

from components.platform import exports, versions
from components.platform.lineage import auditing
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from pipelines import cli
from tests import postgres
from tests.components.chain import Chain

pytestmark = [
    pytest.mark.lane,
    pytest.mark.skipif(not postgres.is_installed(), reason="PostgreSQL is not installed: lineage over it is not verified"),
]
START_SECONDS = 240
BUCKET = "hospital"


@pytest.fixture(scope="module")
def mlflow_server(server, tmp_path_factory):
    """Address of MLflow's server, over PostgreSQL and the bucket."""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    keys |= {"AWS_ENDPOINT_URL_S3": server, "MLFLOW_S3_ENDPOINT_URL": server}
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch, postgres.running() as database:
        for name, value in keys.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database.address, "--workers", "1"]
        command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow", "--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, **keys, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 9)
            process.wait(30)


def _wait(process, address, log):
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def chain(mlflow_server, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "BIOVLM_HOME": str(home),
            "BIOVLM_RUN_ID": "run-1",
            "BIOVLM_MIRRORED": "1",
            "BIOVLM_STORE": f"s3://{BUCKET}/store",
            "MLFLOW_TRACKING_URI": mlflow_server,
        }.items():
            patch.setenv(name, value)
        for name in ("BIOVLM_EVENTS", "MLFLOW_EXPERIMENT_NAME", "BIOVLM_TRIGGER", "BIOVLM_LEDGER"):
            patch.delenv(name, raising=False)
        made = Chain(Settings.from_environment(), home / "refs")
        patch.setattr(exports, "ensure", made.export)
        yield made.make()


@pytest.fixture(scope="module")
def version(chain):
    return versions.find(chain.settings, "models:/mini@champion")


def test_an_untouched_version_is_whole_also_for_who_has_none_of_its_bytes(chain, version, capsys):
    found = auditing.verify(chain.settings, version)
    assert found.broken == []
    assert {"completeness", "what MLflow holds of mini/1", "ledger of mini"} <= set(found.whole)
    for path in chain.settings.store.iterdir():
        shutil.rmtree(path)
    assert cli.call(["lineage", "verify", "models:/mini@champion", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["broken"] == []


PARTS = {
    "weights, data and reports": "/files/",
    "manifests of steps": "/steps/",
    "manifests of data": "/data/",
    "signatures": "/signatures/",
    "ledger": "/entries/",
    "what MLflow keeps with the run": "lineage/",
    "what MLflow serves": "/models/",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_byte_that_changed_in_the_bucket_is_found(chain, version, part):
    client, draw = boto3.client("s3"), random.Random(part)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    names = [one["Key"] for page in pages for one in page.get("Contents", ())]
    mine = sorted(name for name in names if PARTS[part] in name and not name.endswith("conda.yaml"))
    assert mine
    for name in draw.sample(mine, min(4, len(mine))):
        before = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        at = draw.randrange(len(before))
        client.put_object(Bucket=BUCKET, Key=name, Body=before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        try:
            assert auditing.verify(chain.settings, version).broken, f"{name} at byte {at}"
        finally:
            client.put_object(Bucket=BUCKET, Key=name, Body=before)
    assert auditing.verify(chain.settings, version).broken == []


def test_a_tag_that_was_edited_in_the_database_and_an_object_that_is_gone_are_named(chain, version):
    client = Tracking(chain.settings).client
    client.set_model_version_tag("mini", "1", "biovlm.licences", "CC0-1.0")
    found = auditing.verify(chain.settings, versions.find(chain.settings, "models:/mini/1"))
    assert [place for place, _ in found.broken] == ["tag biovlm.licences"]
    client.set_model_version_tag("mini", "1", "biovlm.licences", version.tags["biovlm.licences"])

    bucket, uri = boto3.client("s3"), chain.read("align").folder.name
    name = f"store/steps/train/{uri}/manifest.json"
    before = bucket.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    bucket.delete_object(Bucket=BUCKET, Key=name)
    found = auditing.verify(chain.settings, versions.find(chain.settings, "models:/mini/1"))
    assert any(uri in place for place, _ in found.broken)
    bucket.put_object(Bucket=BUCKET, Key=name, Body=before)
    assert auditing.verify(chain.settings, version).broken == []

"""A training step whose work is done by a real Ray cluster at an address; launcher and cluster share nothing but a bucket.

The cluster is one node on this machine, with a home of its own. It needs ray[default]; all of this takes about two minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from components.platform import code, events, keys, reference
from components.platform.desk import Desk
from components.platform.settings import Settings
from components.platform.step import run_step
from components.platform.store import open_store
from model import manifest, recipe
from model.config import TrainSlice
from model.errors import ConfigError
from model.manifest import canonical_json
from tests.components.ray_cluster import RayCluster, missing
from tests.model.tiny_bases import make_language, make_tower
from tests.pipelines import micro
from tests.standins.kuberay import NAMESPACE, TOKEN, KubeRay, admit, status
from tests.standins.kuberay_pod import Pod
from tests.standins.work import KUBECONFIG

SECONDS = 600
"""A bound and no measure: six processes import Ray before the first step, and on a core that is shared each takes a minute."""
pytestmark = [
    pytest.mark.lane,
    pytest.mark.timeout(2 * SECONDS),
    pytest.mark.skipif(bool(missing()), reason=f"ray[default] is not installed: no {', '.join(missing())}"),
]
EVALUATE = """
import sys
from components.evaluate.step import run
run("evaluate", open(sys.argv[1]).read(), sys.argv[2], sys.argv[3], sys.argv[4])
"""
STEP = "import sys; from components.train.step import run; run(open(sys.argv[1]).read(), sys.argv[2], None, sys.argv[3])"
LONG = {"align": {"epochs": 400, "checkpoint_every": 100}}


@pytest.fixture(scope="module")
def cluster(server, tmp_path_factory):
    cloud = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    cluster = RayCluster(tmp_path_factory.mktemp("cluster"), AWS_ENDPOINT_URL_S3=server, **cloud)
    cluster.start()
    yield cluster
    cluster.stop()


class Launchers:
    """Launcher pods: each start has a home of its own; all belong to one run."""

    def __init__(self, folder, cluster, shared, piece):
        self.folder, self.shared, self.count, self.processes = folder, shared, 0, []
        (folder / "piece.json").write_text(canonical_json(piece))
        self.environment = {
            "BIOVLM_STORE": shared,
            "BIOVLM_RUN_ID": "run-1",
            "BIOVLM_MIRRORED": "1",
            "BIOVLM_RAY_ADDRESS": cluster.address,
            "RAY_AUTH_TOKEN_PATH": str(cluster.token),
        }

    def settings(self):
        return Settings.from_environment(self.environment | {"BIOVLM_HOME": str(self.folder / f"home-{self.count}")})

    def start(self, step=STEP, files=("piece.json", "data.json", "out.json")):
        self.count += 1
        command = [sys.executable, "-c", step, *(str(self.folder / name) for name in files)]
        env = {**os.environ, **self.environment, "BIOVLM_HOME": str(self.settings().home)}
        with self._log().open("wb") as log:  # a pipe that nobody reads would hold it up once it is full
            self.processes.append(subprocess.Popen(command, cwd=code.ROOT, env=env, stderr=log))
        return self.processes[-1]

    def _log(self):
        return self.folder / f"launcher-{self.count}.log"

    def said(self):
        """What the last launcher wrote."""
        return self._log().read_text()

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def heard(self, kind, words=""):
        return [e for e in events.read(self.settings().events) if e.type == kind and words in e.message]

    def wait_for(self, process, kind, words=""):
        deadline = time.monotonic() + SECONDS
        while not self.heard(kind, words):
            assert process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"no {kind} {words} in {SECONDS} s"
            time.sleep(0.1)


@pytest.fixture
def launchers(cluster, shared, client, tmp_path, monkeypatch):
    """The data artifact is in the bucket; whoever made it is gone."""
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "data-home"))
    monkeypatch.setenv("BIOVLM_STORE", shared)
    monkeypatch.setenv("BIOVLM_MIRRORED", "1")
    monkeypatch.delenv("BIOVLM_RAY_ADDRESS", raising=False)
    monkeypatch.setenv("BIOVLM_SIGNING_KEY", str(keys.private(Settings.from_environment())))  # one for the site, as in its Secret
    made = {}

    def produce(work):
        facts = {"sets": {}, "bases": {}, "figures": {}}
        for group, name, make in (
            ("sets", "mini", micro.write_set),
            ("bases", "mini-tower", make_tower),
            ("bases", "mini-language", make_language),
        ):
            folder = work.store.root / "data" / name
            make(folder)
            made[name] = folder
            digest = work.store.publish(f"data/{name}").digest
            facts[group][name] = {"uri": f"data/{name}", "digest": digest, "revision": "c0ffee" * 6, "licence": "CC0-1.0"}
        with manifest.commit(work.final, "data", facts=facts) as folder:
            (folder / "audit.json").write_text("{}")

    run_step("data", "data", {}, {}, str(tmp_path / "data.json"), produce)
    piece = recipe.slices(micro.recipe(stages=LONG))["align"]
    found = Launchers(tmp_path, cluster, shared, piece)
    found.made = made
    yield found
    found.end()


def undisturbed(launchers, tmp_path):
    """Digest of the checkpoint that this process makes without Ray and without a bucket."""
    from model.training.reporter import SilentReporter
    from model.training.stage import StageInputs, run_stage

    piece = TrainSlice.model_validate(json.loads((launchers.folder / "piece.json").read_text()))
    bases = {name: launchers.made[name] for name in ("mini-tower", "mini-language")}
    given = StageInputs({"mini": launchers.made["mini"]}, bases)
    return run_stage(piece, given, tmp_path / "work", tmp_path / "final", SilentReporter()).digest


def test_a_training_survives_its_launchers_in_a_cluster_that_shares_only_the_bucket(launchers, cluster, tmp_path, monkeypatch):
    first = launchers.start()
    launchers.wait_for(first, "note", "running")
    first.kill()
    first.wait()

    second = launchers.start()
    launchers.wait_for(second, "note", "adopted from an earlier attempt")
    launchers.wait_for(second, "progress")
    second.send_signal(signal.SIGTERM)
    assert second.wait(SECONDS) == 75
    assert "saved after step" in launchers.heard("failed")[-1].message
    assert len(submitted(cluster, monkeypatch)) == 1  # the second launcher started none

    third = launchers.start()
    assert third.wait(SECONDS) == 0, launchers.said()
    (resumed,) = launchers.heard("resumed")
    assert resumed.done > 0
    assert launchers.heard("progress")[-1].metrics

    settings = launchers.settings()
    found = reference.read(launchers.folder / "out.json", settings.store)
    assert not found.folder.exists()  # a launcher needs no weights
    assert found.digest == undisturbed(launchers, tmp_path)
    store = open_store(settings)
    assert manifest.verify(store.fetch(store.uri(found.folder), found.digest)).digest == found.digest
    result = Desk.of(launchers.shared, "run-1", found.folder.name).result()
    assert (result.exit_code, result.digest, result.tries) == (0, found.digest, 1)
    assert (cluster.home / "store" / "data" / "mini" / "manifest.json").is_file()  # fetched by the node itself


def test_two_workers_of_the_cluster_write_the_report_that_one_writes_here(launchers, monkeypatch, tmp_path):
    from components.evaluate import step as evaluate

    settings = Settings.from_environment()
    store, piece = open_store(settings), recipe.slices(micro.recipe(stages={"align": {"epochs": 1}}))
    (tmp_path / "piece.json").write_text(canonical_json(piece["align"]))
    undisturbed(launchers, tmp_path)
    made = store.folder("train", "0" * 64)
    made.parent.mkdir(parents=True)
    (tmp_path / "final").rename(made)
    checkpoint = reference.Reference.to(made, store.publish(store.uri(made)))
    checkpoint.write(tmp_path / "checkpoint.json", store.root)
    resources = piece["evaluate"]["resources"] | {"workers": 2}
    (tmp_path / "two.json").write_text(canonical_json(piece["evaluate"] | {"resources": resources}))

    process = launchers.start(EVALUATE, ("two.json", "data.json", "checkpoint.json", "two.out"))
    assert process.wait(SECONDS) == 0, launchers.said()
    shared = reference.read(tmp_path / "two.out", launchers.settings().store)
    evaluate.run(
        "evaluate", canonical_json(piece["evaluate"]), *(str(tmp_path / f"{n}.json") for n in ("data", "checkpoint", "one"))
    )
    assert reference.read(tmp_path / "one.json", store.root).digest == shared.digest
    assert manifest.verify(shared.folder).digest == shared.digest  # the launcher has it: promotion and the page read it
    export = store.fetch(f"exports/{checkpoint.digest}")  # for a registration without torch
    assert manifest.verify(export).parents["checkpoint"] == checkpoint.digest


def test_an_error_of_a_worker_keeps_its_kind_and_its_exit_code(launchers, client, cluster):
    bucket = launchers.shared.removeprefix("s3://").split("/")[0]
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
    (image,) = [name for name in names if name.endswith("images/train-3.png")]
    client.put_object(Bucket=bucket, Key=image, Body=b"#" * 90)
    # An earlier test may have left the node its copy of the true one.
    shutil.rmtree(cluster.home / "store" / "data", ignore_errors=True)
    process = launchers.start()
    assert process.wait(SECONDS) == 77, launchers.said()
    assert "not what the manifest says" in launchers.heard("failed")[-1].message


def test_a_wrong_token_ends_the_step_at_once_with_78(launchers, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    launchers.environment["RAY_AUTH_TOKEN_PATH"] = str(wrong)
    process = launchers.start()
    assert process.wait(SECONDS) == ConfigError.exit_code, launchers.said()
    assert "refuses the token" in launchers.heard("failed")[-1].message


def test_a_launcher_of_a_rayjob_comes_from_its_command_to_the_checkpoint_and_survives_its_own_death(
    launchers, cluster, tmp_path, monkeypatch
):
    piece = json.loads((tmp_path / "piece.json").read_text())
    piece["stage"]["epochs"] = 20
    (tmp_path / "piece.json").write_text(canonical_json(piece))
    cloud = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3")}
    ray = {"RAY_ADDRESS": cluster.gcs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token)}
    pod = Pod({**cloud, **ray, "BIOVLM_HOME": str(tmp_path / "pod"), "HOME": str(tmp_path)}, tmp_path / "pod.log")
    with KubeRay([status("Suspended"), admit(), pod]) as kubernetes, contextlib.closing(SimpleNamespace(close=pod.end)):
        kubernetes.queue("biovlm-cpu", {})
        launchers.environment = kuberay_environment(launchers, kubernetes, tmp_path)
        first = launchers.start()
        launchers.wait_for(first, "note", "running")
        pod.pause()  # else it could be through before the second launcher has come up
        first.kill()
        first.wait()

        second = launchers.start()
        launchers.wait_for(second, "note", "of an earlier attempt is adopted")
        pod.go_on()
        assert second.wait(SECONDS) == 0, launchers.said() + (tmp_path / "pod.log").read_text()
        (made,) = kubernetes.created
    found = reference.read(tmp_path / "out.json", launchers.settings().store)
    assert Desk.of(launchers.shared, "run-1", found.folder.name).result().digest == found.digest
    assert found.digest == undisturbed(launchers, tmp_path)
    assert {"secretRef": {"name": "biovlm-store-train"}} in json_values(made, "envFrom")
    assert "AWS_" not in json.dumps(made), "secrets come by name"


def kuberay_environment(launchers, kubernetes, folder):
    (folder / "kubeconfig").write_text(KUBECONFIG.format(address=kubernetes.address, token=TOKEN))
    told = {
        "BIOVLM_LAUNCHER": "kuberay",
        "BIOVLM_NAMESPACE": NAMESPACE,
        "BIOVLM_TEAM": "radiology",
        "BIOVLM_TRAIN_IMAGE": f"registry.example/biovlm-train@sha256:{'a' * 64}",
        "BIOVLM_RAY_SECRETS": "biovlm-store-train",
        "KUBECONFIG": str(folder / "kubeconfig"),
    }
    return {name: value for name, value in (launchers.environment | told).items() if name != "BIOVLM_RAY_ADDRESS"}


def json_values(value, name):
    """Everything in lists under that name, anywhere."""
    if isinstance(value, list):
        return [found for part in value for found in json_values(part, name)]
    if not isinstance(value, dict):
        return []
    return [found for key, part in value.items() for found in (part if key == name else json_values(part, name))]


def submitted(cluster, monkeypatch):
    script = "from ray.job_submission import JobSubmissionClient as C; import sys; print(len(C(sys.argv[1]).list_jobs()))"
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token)}
    done = subprocess.run([sys.executable, "-c", script, cluster.address], env=env, capture_output=True, text=True, check=True)
    return range(int(done.stdout.split()[-1]))

"""What KFP passes on to the Ray workers reaches whoever builds their job; where it passes on nothing, nothing is there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from components.platform import pools, task_config
from components.platform.settings import Settings
from model.config import Resources
from model.errors import ConfigError


@dataclass
class TaskConfig:
    """As `kfp.dsl.TaskConfig`."""

    resources: dict | None = None
    volumes: list | None = None
    volume_mounts: list | None = None
    node_selector: dict | None = None
    env: list | None = None


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(task_config.VARIABLE, "")


def test_what_was_passed_on_is_read_again():
    given = TaskConfig({"limits": {"nvidia.com/gpu": "1"}}, [{"name": "cache"}], [{"name": "cache", "mountPath": "/cache"}])
    task_config.keep(given)
    found = task_config.kept()
    assert set(found) == {"resources", "volumes", "volume_mounts"}
    assert found["resources"] == {"limits": {"nvidia.com/gpu": "1"}}


OWN = {"name": "MLFLOW_TRACKING_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "biovlm-tracking", "key": "x"}}}
SIGNING = {"name": "BIOVLM_SIGNING_KEY_PEM", "valueFrom": {"secretKeyRef": {"name": "biovlm-signing", "key": "signing.pem"}}}
OTHER = {"name": "PROXY_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "password"}}}
PLACE = {"name": "BIOVLM_STORE", "valueFrom": {"configMapKeyRef": {"name": "biovlm", "key": "BIOVLM_STORE"}}}


def test_the_launchers_own_secrets_stay_with_it():
    volumes = [{"name": "keys", "secret": {"secretName": "biovlm-signing"}}, {"name": "cache", "persistentVolumeClaim": {}}]
    mounts = [{"name": "keys", "mountPath": "/keys"}, {"name": "cache", "mountPath": "/cache"}]
    task_config.keep(
        TaskConfig(volumes=volumes, volume_mounts=mounts, env=[OWN, SIGNING, OTHER, PLACE, {"name": "A", "value": "b"}])
    )
    found = task_config.kept()
    assert found["env"] == [OTHER, PLACE, {"name": "A", "value": "b"}]
    assert (found["volumes"], found["volume_mounts"]) == (volumes[1:], mounts[1:])


@pytest.mark.parametrize("nothing", [TaskConfig(), None, ""])
def test_on_this_machine_nothing_is_kept(nothing):
    task_config.keep(nothing)
    assert task_config.kept() == {}


@pytest.mark.parametrize("text", ["{", "[1]", "5"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match=task_config.VARIABLE):
        task_config.kept({task_config.VARIABLE: text})


def test_a_gpu_pool_names_its_accelerator_and_its_place():
    wanted = Resources(gpus_per_worker=1, memory_gib=64, cpus_per_worker=8)
    asks = task_config.asked(wanted, pools.load()["a100-80g"])
    assert (asks.accelerator, asks.gpus, asks.cpu, asks.memory) == ("nvidia.com/gpu", "1", "8000m", "65536Mi")
    assert asks.node_selector == {"biovlm.io/pool": "a100-80g"}
    assert asks.tolerations == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.mark.parametrize(("said", "run"), [("7d0f", "7d0f"), ("", "adhoc")])
def test_a_pod_of_a_pipeline_knows_its_run(tmp_path, said, run):
    assert Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_KFP_RUN_ID": said}).run_id == run
    mine = {"BIOVLM_HOME": str(tmp_path), "BIOVLM_KFP_RUN_ID": said, "BIOVLM_RUN_ID": "mine"}
    assert Settings.from_environment(mine).run_id == "mine"

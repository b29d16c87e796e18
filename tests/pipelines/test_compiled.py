"""The compiled pipeline in Git is what the graph says, and says what it must."""

from __future__ import annotations

import pytest
import yaml

from components.platform.retries import MOST_ATTEMPTS
from components.platform.task_config import LAUNCHERS_OWN
from pipelines import biovlm, engine, pods, runs
from pipelines.pods import Images
from pipelines.summary import STEPS


def documents(path):
    """All documents: settings for Kubernetes stand in a second one."""
    found = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    for document in found:
        document.pop("sdkVersion", None)
    return found


@pytest.fixture(scope="module")
def tasks():
    return documents(biovlm.COMPILED)[0]["root"]["dag"]["tasks"]


def test_the_compiled_pipeline_is_up_to_date(tmp_path):
    biovlm.compile_to(tmp_path / "now.yaml")
    assert documents(tmp_path / "now.yaml") == documents(biovlm.COMPILED), "run `biovlm compile` and commit the result"


def test_every_step_is_there_once_and_is_never_cached_by_kfp(tasks):
    assert sorted(task["taskInfo"]["name"] for task in tasks.values()) == sorted(STEPS)
    assert not [name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")]


def test_order_follows_from_artifacts_alone(tasks):
    for name, task in tasks.items():
        artifacts = task.get("inputs", {}).get("artifacts", {}).values()
        parameters = task.get("inputs", {}).get("parameters", {}).values()
        needed = {entry["taskOutputArtifact"]["producerTask"] for entry in artifacts}
        needed |= {entry["taskOutputParameter"]["producerTask"] for entry in parameters if "taskOutputParameter" in entry}
        assert set(task.get("dependentTasks", ())) == needed, name


def test_the_champion_is_evaluated_by_the_same_component_on_the_same_questions(tasks):
    candidate, champion = (next(t for t in tasks.values() if t["taskInfo"]["name"] == n) for n in ("evaluate", "champion"))
    for part in ("piece", "who"):
        assert part in candidate["inputs"]["parameters"]
    assert candidate["inputs"]["parameters"]["piece"] == champion["inputs"]["parameters"]["piece"]
    assert candidate["inputs"]["artifacts"]["data"] == champion["inputs"]["artifacts"]["data"]


def test_components_install_nothing_and_call_our_package():
    executors = documents(biovlm.COMPILED)[0]["deploymentSpec"]["executors"].values()
    for executor in executors:
        text = " ".join(map(str, [*executor["container"]["command"], *executor["container"].get("args", ())]))
        assert "pip install" not in text
        assert ".step import run" in text


# ------------------------------------------------------------------------------------- what the pods need on a cluster

DIGEST = "a" * 64
IMAGES = Images(f"registry.example/launcher@sha256:{DIGEST}", f"registry.example/train@sha256:{DIGEST}")
HEAVY = {"align", "instruct", "task", "evaluate", "champion"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Both documents, compiled for a cluster."""
    path = tmp_path_factory.mktemp("compiled") / "cluster.yaml"
    biovlm.compile_to(path, IMAGES)
    return documents(path)


@pytest.fixture(scope="module")
def steps(package):
    """Name of a step -> its task, component, container and pod settings."""
    spec, platform = package
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found = {}
    for task in spec["root"]["dag"]["tasks"].values():
        component = spec["components"][task["componentRef"]["name"]]
        label = component["executorLabel"]
        container = spec["deploymentSpec"]["executors"][label]["container"]
        found[task["taskInfo"]["name"]] = (task, component, container, pods[label])
    return found


def test_the_names_of_the_tasks_are_those_that_a_run_is_shown_by(tasks):
    assert {name: task["taskInfo"]["name"] for name, task in tasks.items()} == runs.TASKS


def test_every_step_runs_in_the_launcher_image_by_digest_and_names_the_train_image(steps):
    for task, _, container, _ in steps.values():
        assert container["image"] == IMAGES.launcher, task["taskInfo"]
        assert {"name": "BIOVLM_TRAIN_IMAGE", "value": IMAGES.train} in container["env"]
        assert {"name": "BIOVLM_LAUNCHER_IMAGE", "value": IMAGES.launcher} in container["env"]


def test_what_a_worker_asks_for_is_passed_on_and_never_asked_for_the_launcher(steps):
    fields = {
        "RESOURCES",
        "KUBERNETES_TOLERATIONS",
        "KUBERNETES_NODE_SELECTOR",
        "KUBERNETES_AFFINITY",
        "KUBERNETES_VOLUMES",
        "ENV",
    }
    for name, (_, component, container, pod) in steps.items():
        passed = {entry["field"]: entry.get("applyToTask", False) for entry in component.get("taskConfigPassthroughs", ())}
        if name in HEAVY:
            assert passed == dict.fromkeys(fields, False) | {"ENV": True}, name
            assert set(container["resources"]) >= {"accelerator", "resourceCpuLimit", "resourceMemoryLimit"}
            assert {"nodeSelector", "tolerations"} <= set(pod)
        else:
            assert (passed, "resources" in container, {"nodeSelector", "tolerations"} & set(pod)) == ({}, False, set()), name


def test_only_the_launchers_of_heavy_work_are_started_again_and_at_most_three_times_in_all(steps):
    for name, (task, *_) in steps.items():
        retries = task.get("retryPolicy", {}).get("maxRetryCount", 0)
        assert retries == (MOST_ATTEMPTS - 1 if name in HEAVY else 0), name
    assert MOST_ATTEMPTS == 3


def test_every_pod_has_an_end_a_user_that_is_not_root_and_knows_who_it_is(steps):
    for name, (_, _, container, pod) in steps.items():
        assert 0 < int(pod["activeDeadlineSeconds"]) <= 14 * 24 * 3600, name
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        told = {entry["name"]: entry["fieldPath"] for entry in pod["fieldPathAsEnv"]}
        assert told == pods.POD
        assert told["BIOVLM_KFP_RUN_ID"] == "metadata.labels['pipeline/runid']"
        assert not [entry for entry in container["env"] if "{{" in entry["value"]], "KFP's driver copies variables as they stand"
        assert pod["podMetadata"]["labels"]["biovlm.io/step"] == name


SIGNS = {"BIOVLM_SIGNING_KEY_PEM", "BIOVLM_TRUSTED_KEYS_PEM"}
KEYS = {
    "preflight": {"BIOVLM_SIGNER_PEM", "BIOVLM_TRUSTED_KEYS_PEM"},
    "promote": {"BIOVLM_TRUSTED_KEYS_PEM"},
    **dict.fromkeys(("evaluate", "champion", "register"), SIGNS),
}


def test_every_step_is_told_who_began_the_run(package):
    for task in package[0]["root"]["dag"]["tasks"].values():
        assert task["inputs"]["parameters"]["trigger"] == {"componentInputParameter": "trigger"}, task["taskInfo"]
    assert package[0]["root"]["inputDefinitions"]["parameters"]["trigger"]["defaultValue"] == "kubeflow"


def test_secrets_are_named_and_hold_what_is_secret_and_nothing_else_does(steps, package):
    for name, (*_, container, pod) in steps.items():
        secret = {key["envVar"] for entry in pod["secretAsEnv"] for key in entry["keyToEnv"]}
        plain = {entry["name"] for entry in container["env"]}
        plain |= {key["envVar"] for entry in pod["configMapAsEnv"] for key in entry["keyToEnv"]}
        logins = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
        assert secret == logins | KEYS.get(name, set()), name
        assert not [one for one in plain - secret if any(word in one for word in ("KEY", "PASSWORD", "TOKEN"))]
        assert {entry["secretName"] for entry in pod["secretAsEnv"]} <= set(LAUNCHERS_OWN)
        needed = next(entry for entry in pod["configMapAsEnv"] if not entry.get("optional"))
        assert {key["envVar"] for key in needed["keyToEnv"]} == {"BIOVLM_STORE", "MLFLOW_TRACKING_URI"}


def test_no_branch_depends_on_the_text_of_an_output(package):
    """kfp.local puts such a text into Python's `eval`, and counts what it cannot resolve as False."""
    spec = package[0]
    tasks = [
        *spec["root"]["dag"]["tasks"].values(),
        *(t for c in spec["components"].values() for t in c.get("dag", {}).get("tasks", {}).values()),
    ]
    assert not [task for task in tasks if "triggerPolicy" in task or "iterator" in str(task.keys()).lower()]


def test_on_this_machine_every_step_is_tried_once():
    spec = next(iter(yaml.load_all(engine.once(biovlm.COMPILED.read_text()), Loader=yaml.CSafeLoader)))
    kept = documents(biovlm.COMPILED)[0]
    assert "retryPolicy" in str(kept)
    assert "retryPolicy" not in str(spec)
    for task in kept["root"]["dag"]["tasks"].values():
        task.pop("retryPolicy", None)
    spec.pop("sdkVersion")
    assert spec == kept

"""Pods are lifted from every kind that carries them, and the command says what it finds with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from infra.policy.__main__ import main
from infra.policy.documents import UnreadableError, pods, read, steps

TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "i"}]}}
CLUSTER = {"headGroupSpec": {"template": TEMPLATE}, "workerGroupSpecs": [{"template": TEMPLATE}, {"template": TEMPLATE}]}
COMPILED = Path(__file__).resolve().parents[3] / "pipelines" / "compiled" / "biovlm.yaml"


@pytest.mark.parametrize(
    ("kind", "spec", "count"),
    [
        ("Pod", TEMPLATE["spec"], 1),
        ("Deployment", {"template": TEMPLATE}, 1),
        ("StatefulSet", {"template": TEMPLATE}, 1),
        ("DaemonSet", {"template": TEMPLATE}, 1),
        ("Job", {"template": TEMPLATE}, 1),
        ("CronJob", {"jobTemplate": {"spec": {"template": TEMPLATE}}}, 1),
        ("RayCluster", CLUSTER, 3),
        ("RayJob", {"rayClusterSpec": CLUSTER}, 3),
        ("RayJob", {"rayClusterSpec": CLUSTER, "submitterPodTemplate": TEMPLATE}, 4),
        ("RayService", {"rayClusterConfig": CLUSTER}, 3),
        ("ConfigMap", {}, 0),
    ],
)
def test_every_pod_of_a_kind_is_lifted(kind, spec, count):
    lifted = list(pods({"kind": kind, "metadata": {"name": "x"}, "spec": spec}))
    assert [len(list(pod.containers())) for pod in lifted] == [1] * count


def test_containers_that_run_first_are_looked_at_too():
    spec = {**TEMPLATE["spec"], "initContainers": [{"name": "first", "image": "i"}]}
    (pod,) = pods({"kind": "Pod", "metadata": {"name": "x"}, "spec": spec})
    assert [path for path, _ in pod.containers()] == ["spec.initContainers[0]", "spec.containers[0]"]


def test_the_nodes_of_a_ray_cluster_carry_the_labels_that_kuberay_gives_them():
    lifted = pods({"kind": "RayCluster", "metadata": {"name": "x"}, "spec": CLUSTER})
    assert [pod.labels["ray.io/node-type"] for pod in lifted] == ["head", "worker", "worker"]


def test_every_step_of_the_compiled_pipeline_is_seen():
    documents = read([COMPILED])
    (pipeline,) = [document for document in documents if "pipelineInfo" in document]
    assert {step.name for step in steps(documents)} == {
        task["taskInfo"]["name"] for task in pipeline["root"]["dag"]["tasks"].values()
    }


def test_a_list_of_objects_is_taken_apart(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"kind": "List", "items": [{"kind": "Service"}, {"kind": "Pod"}]}))
    assert [document["kind"] for document in read([path])] == ["Service", "Pod"]


def test_findings_are_letters_with_object_field_and_remedy_and_the_exit_code_is_77(tmp_path, capsys):
    path = tmp_path / "service.yaml"
    path.write_text(
        yaml.safe_dump({"kind": "Service", "metadata": {"name": "x", "namespace": "y"}, "spec": {"type": "NodePort"}})
    )
    assert main([str(path)]) == 77
    first, why, hint = capsys.readouterr().out.splitlines()
    assert first == "Service y/x: spec.type: is NodePort  [not-outside]"
    assert why.startswith("  why: ")
    assert hint.startswith("  hint: ")


def test_a_secret_is_not_repeated_in_its_letter(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    path.write_text(yaml.safe_dump({"kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": key}}))
    assert main([str(path)]) == 77
    assert key not in capsys.readouterr().out


def test_objects_without_a_finding_end_with_0(tmp_path, capsys):
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump({"kind": "Service", "metadata": {"name": "x"}, "spec": {"type": "ClusterIP"}}))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "is not YAML"), ("just text", "neither a Kubernetes object"), (None, "cannot read")]
)
def test_what_cannot_be_read_is_a_letter_and_66(text, says, tmp_path, capsys):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnreadableError, match=says):
        read([path])
    assert main([str(path)]) == 66
    assert "hint:" in capsys.readouterr().err


def test_no_file_is_a_usage_error(capsys):
    assert main([]) == 64
    assert main(["--unknown", "x"]) == 64
    assert "python -m infra.policy" in capsys.readouterr().err

"""The manifests and the code mean the same things by the same names."""

from __future__ import annotations

import re

import pytest
import yaml

from infra.policy.documents import pods, read
from tests.manifests import OVERLAYS, ROOT, find, rendered

POOLS = ROOT / "components" / "platform" / "pools.yaml"
README = ROOT / "infra" / "README.md"
LAUNCHER = {("ray.io", "rayjobs", verb) for verb in ("create", "get", "list", "watch", "delete", "patch")}


@pytest.fixture(scope="module")
def gpu():
    return rendered("gpu")


def rights(documents, account):
    """(group, resource, verb) that an account has, by namespace; named resources have `=`."""
    roles = {(d["kind"], d["metadata"]["name"]): d for d in documents if d["kind"] in ("Role", "ClusterRole")}
    bindings = [d for d in documents if d["kind"].endswith("RoleBinding") and any(s["name"] == account for s in d["subjects"])]
    for binding in bindings:
        for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]["rules"]:
            named = "=" if rule.get("resourceNames") else ""
            yield from ((g, r + named, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"])


def test_the_launcher_may_do_this_and_nothing_else(gpu):
    reads = {("kueue.x-k8s.io", kind, verb) for kind in ("localqueues", "workloads") for verb in ("get", "list")}
    quotas = {("kueue.x-k8s.io", f"{kind}=", "get") for kind in ("clusterqueues", "resourceflavors", "workloadpriorityclasses")}
    of_kfp = {("argoproj.io", "workflowtaskresults", verb) for verb in ("create", "patch")}
    of_kfp |= {("", "configmaps=", "get"), ("", "secrets=", "get")}
    assert set(rights(gpu, "biovlm-launcher")) == LAUNCHER | reads | quotas | of_kfp


def test_the_reaper_may_find_and_delete_ray_jobs(gpu):
    assert set(rights(gpu, "biovlm-reaper")) == {("ray.io", "rayjobs", verb) for verb in ("get", "list", "delete")}


@pytest.mark.parametrize("account", ["biovlm-ray", "mlflow", "postgres", "default"])
def test_other_accounts_have_no_right_at_all(gpu, account):
    assert not list(rights(gpu, account))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_account_that_a_pod_names_is_there(overlay):
    documents = rendered(overlay)
    there = {(d["metadata"]["namespace"], d["metadata"]["name"]) for d in documents if d["kind"] == "ServiceAccount"}
    assert {(pod.namespace, pod.spec["serviceAccountName"]) for d in documents for pod in pods(d)} <= there


def test_the_launcher_reads_the_quotas_of_all_queues(gpu):
    rules = {rule["resources"][0]: set(rule["resourceNames"]) for rule in find(gpu, "ClusterRole biovlm-quota-reader")["rules"]}
    kinds = {
        "clusterqueues": "ClusterQueue",
        "resourceflavors": "ResourceFlavor",
        "workloadpriorityclasses": "WorkloadPriorityClass",
    }
    assert rules == {resource: {d["metadata"]["name"] for d in gpu if d["kind"] == kind} for resource, kind in kinds.items()}


def test_every_pool_has_its_queue_priority_and_nodes(gpu):
    if not POOLS.exists():
        pytest.skip("there are no pools yet")
    for name, pool in yaml.safe_load(POOLS.read_text()).items():
        local = find(gpu, f"LocalQueue {pool['queue']}")
        queue = find(gpu, f"ClusterQueue {local['spec']['clusterQueue']}")
        group = queue["spec"]["resourceGroups"][0]
        flavor = find(gpu, f"ResourceFlavor {group['flavors'][-1]['name']}")["spec"]
        assert flavor["nodeLabels"] == pool["node_selector"], name
        assert {"cpu", "memory", "ephemeral-storage"} | set(filter(None, [pool.get("accelerator")])) == set(
            group["coveredResources"]
        )
        assert pool["priority"] in {d["metadata"]["name"] for d in gpu if d["kind"] == "WorkloadPriorityClass"}
        assert all(toleration in flavor.get("tolerations", []) for toleration in pool.get("tolerations", []))
        if pool.get("topology"):
            levels = find(gpu, f"Topology {flavor['topologyName']}")["spec"]["levels"]
            assert pool["topology"]["level"] in [level["nodeLabel"] for level in levels], name
        quota = next((r["nominalQuota"] for r in group["flavors"][-1]["resources"] if r["name"] == pool.get("accelerator")), None)
        assert quota is None or quota == pool["max_gpus"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_of_biovlm_is_in_the_table_of_settings(overlay):
    lines = (ROOT / "components" / "platform" / "settings.py").read_text().splitlines()
    table = {name.strip() for line in lines if line.startswith("| BIOVLM_") for name in line.split("|")[1].split(",")}
    documents = rendered(overlay)
    told = set(find(documents, "ConfigMap biovlm")["data"])
    told |= {
        entry["name"]
        for d in documents
        for pod in pods(d)
        for _, container in pod.containers()
        for entry in container.get("env", [])
    }
    unknown = {name for name in told if name.startswith("BIOVLM_") and name not in table}
    assert not unknown


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_that_a_pod_names_is_listed_with_its_keys(overlay):
    listed = README.read_text()
    for name, keys in secrets(rendered(overlay)).items():
        assert f"`{name}`" in listed, name
        assert all(f"`{key}`" in listed for key in keys), (name, keys)


def test_every_secret_that_a_step_names_is_listed_with_its_keys():
    listed, platform = README.read_text(), read([ROOT / "pipelines" / "compiled" / "biovlm.yaml"])[1]
    for step in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        for entry in step["secretAsEnv"]:
            row = next(line for line in listed.splitlines() if line.startswith(f"| `{entry['secretName']}` |"))
            assert all(f"`{key['secretKey']}`" in row for key in entry["keyToEnv"]), row


def secrets(documents):
    """Secret -> keys that pods ask for."""
    found = {}
    for pod in (pod for document in documents for pod in pods(document)):
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                found.setdefault(volume["secret"]["secretName"], set())
        for _, container in pod.containers():
            for entry in container.get("env", []):
                reference = (entry.get("valueFrom") or {}).get("secretKeyRef")
                if reference:
                    found.setdefault(reference["name"], set()).add(reference["key"])
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    found.setdefault(source["secretRef"]["name"], set()).update(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return found


def test_every_image_is_set_by_every_overlay():
    for overlay in OVERLAYS:
        images = {container["image"] for d in rendered(overlay) for pod in pods(d) for _, container in pod.containers()}
        assert all(re.fullmatch(r"[\w.:/-]+/[\w-]+@sha256:[0-9a-f]{64}", image) for image in images), images


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_budget_finds_its_pods(overlay):
    documents = rendered(overlay)
    known = [(pod.namespace, pod.labels) for document in documents for pod in pods(document)]
    for budget in (d for d in documents if d["kind"] == "PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        found = [
            labels for namespace, labels in known if namespace == budget["metadata"]["namespace"] and wanted <= labels.items()
        ]
        assert found, budget["metadata"]["name"]
        assert budget["spec"]["minAvailable"] >= len(found)

"""Each rule refuses what it is there to refuse: taking one field away from objects that break no rule turns exactly that rule red."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from infra.policy.checks import RULES, check
from infra.policy.documents import read
from tests.manifests import GONE, changed, find

CRON = "spec/jobTemplate/spec"
POD = f"{CRON}/template/spec"
MAIN = f"{POD}/containers/0"
CLUSTER = "spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
STEP = "deploymentSpec/executors/exec-promote/container"
TASK = "root/dag/tasks/promote"
ON_KUBERNETES = "platforms/kubernetes/deploymentSpec/executors/exec-promote"
KEY = "AKIA" + "ABCDEFGHIJKLMNOP"
RANDOM = "q7Zp2LxV9" + "bTn4RwKe8YsHd3M"
MUTATIONS = [
    ("non-root", "CronJob nightly", f"{POD}/securityContext/runAsNonRoot", GONE),
    ("non-root", "CronJob nightly", f"{POD}/securityContext/runAsUser", GONE),
    ("non-root", "CronJob nightly", f"{POD}/securityContext/runAsUser", 0),
    ("non-root", "CronJob nightly", f"{MAIN}/securityContext/runAsNonRoot", False),
    ("no-privilege", "CronJob nightly", f"{MAIN}/securityContext/allowPrivilegeEscalation", GONE),
    ("no-privilege", "CronJob nightly", f"{MAIN}/securityContext/capabilities/drop", GONE),
    ("no-privilege", "CronJob nightly", f"{MAIN}/securityContext/capabilities/add", ["NET_ADMIN"]),
    ("no-privilege", "CronJob nightly", f"{MAIN}/securityContext/privileged", True),
    ("no-privilege", "CronJob nightly", f"{MAIN}/securityContext/procMount", "Unmasked"),
    ("seccomp", "CronJob nightly", f"{POD}/securityContext/seccompProfile", GONE),
    ("seccomp", "CronJob nightly", f"{MAIN}/securityContext/seccompProfile", {"type": "Unconfined"}),
    ("no-host", "CronJob nightly", f"{POD}/hostNetwork", True),
    ("no-host", "CronJob nightly", f"{POD}/hostPID", True),
    ("no-host", "CronJob nightly", f"{POD}/volumes/0", {"name": "node", "hostPath": {"path": "/"}}),
    ("no-host", "CronJob nightly", f"{MAIN}/ports/0", {"containerPort": 80, "hostPort": 80}),
    ("no-host", "CronJob nightly", f"{POD}/securityContext/sysctls", [{"name": "a", "value": "b"}]),
    ("read-only-root", "CronJob nightly", f"{MAIN}/securityContext/readOnlyRootFilesystem", GONE),
    ("read-only-root", "CronJob nightly", f"{POD}/volumes/0/emptyDir", {}),
    *[
        ("limits", "CronJob nightly", f"{MAIN}/resources/{kind}/{name}", GONE)
        for kind in ("requests", "limits")
        for name in ("cpu", "memory")
    ],
    ("limits", "CronJob nightly", f"{MAIN}/resources", GONE),
    ("limits", "RayJob train", f"{HEAD}/template/spec/containers/0/resources/requests/cpu", "500m"),
    ("image-by-digest", "CronJob nightly", f"{MAIN}/image", "registry.example.org/biovlm:1.0"),
    ("image-by-digest", "RayJob train", f"{CLUSTER}/workerGroupSpecs/0/template/spec/containers/0/image", "biovlm:latest"),
    ("no-api-token", "CronJob nightly", f"{POD}/automountServiceAccountToken", GONE),
    ("no-api-token", "CronJob nightly", f"{POD}/automountServiceAccountToken", True),
    ("no-api-token", "CronJob nightly", f"{POD}/volumes/1/projected/sources/0/serviceAccountToken/audience", GONE),
    ("own-account", "CronJob nightly", f"{POD}/serviceAccountName", GONE),
    ("no-secret-by-value", "CronJob nightly", f"{MAIN}/env/1", {"name": "PGPASSWORD", "value": "x"}),
    ("no-secret-by-value", "CronJob nightly", f"{MAIN}/env/1", {"name": "HARMLESS", "value": KEY}),
    ("no-secret-by-value", "CronJob nightly", f"{MAIN}/env/1", {"name": "HARMLESS", "value": RANDOM}),
    ("no-secret-by-value", "CronJob nightly", f"{MAIN}/env/1", {"name": "STORE", "value": "postgresql://me:word@host/db"}),
    ("no-secret-by-value", "CronJob nightly", f"{MAIN}/command/2", f"--key={KEY}"),
    ("no-secret-by-value", "CronJob nightly", f"{CRON}/template/metadata/annotations/note", KEY),
    ("no-secret-by-value", "CronJob nightly", f"{CRON}/template/metadata/labels/note", RANDOM),
    *[
        ("workers-own-secrets", "RayJob train", f"{CLUSTER}/{group}/template/spec/{path}", value)
        for group in ("headGroupSpec", "workerGroupSpecs/0")
        for path, value in (
            (
                "containers/0/env/1",
                {"name": "KEY_PEM", "valueFrom": {"secretKeyRef": {"name": "biovlm-signing", "key": "signing.pem"}}},
            ),
            ("containers/0/envFrom", [{"secretRef": {"name": "biovlm-tracking"}}]),
            ("volumes/0", {"name": "keys", "secret": {"secretName": "biovlm-signing"}}),
            ("volumes/0", {"name": "keys", "projected": {"sources": [{"secret": {"name": "biovlm-store"}}]}}),
        )
    ],
    ("no-wildcard", "Role launcher", "rules/0/verbs", ["*"]),
    ("no-wildcard", "Role launcher", "rules/0/resources", ["*"]),
    ("no-wildcard", "Role launcher", "rules/0/apiGroups", ["*"]),
    ("no-wildcard", "Role launcher", "rules/0/resources", ["pods/exec"]),
    ("no-wildcard", "Role launcher", "rules/0/verbs", ["bind"]),
    ("no-wildcard", "Role launcher", "rules/0/verbs", ["impersonate"]),
    ("no-wildcard", "Role launcher", "rules/0/verbs", ["escalate"]),
    ("no-wildcard", "Role launcher", "rules/1/resourceNames", GONE),
    ("no-wildcard", "Role launcher", "rules/1/verbs", ["get", "list"]),
    ("no-cluster-role", "Role launcher", "kind", "ClusterRole"),
    ("no-cluster-role", "RoleBinding launcher", "kind", "ClusterRoleBinding"),
    ("known-subjects", "RoleBinding launcher", "subjects/0/name", "default"),
    ("known-subjects", "RoleBinding launcher", "subjects/0", {"kind": "Group", "name": "system:authenticated"}),
    ("known-subjects", "RoleBinding launcher", "roleRef/name", "cluster-admin"),
    ("no-secret-object", "ConfigMap settings", "kind", "Secret"),
    ("no-secret-object", "ConfigMap settings", "data/KEY", KEY),
    ("token-unmounted", "ServiceAccount biovlm-ray", "automountServiceAccountToken", GONE),
    ("restricted-namespace", "Namespace biovlm", "metadata/labels", {}),
    ("deadlines", "Job once", "spec/activeDeadlineSeconds", GONE),
    ("deadlines", "Job once", "spec/ttlSecondsAfterFinished", GONE),
    ("deadlines", "CronJob nightly", f"{CRON}/activeDeadlineSeconds", GONE),
    ("deadlines", "CronJob nightly", "spec/concurrencyPolicy", GONE),
    ("deadlines", "RayJob train", "spec/activeDeadlineSeconds", GONE),
    ("deadlines", "RayJob train", "spec/preRunningDeadlineSeconds", GONE),
    ("deadlines", "RayJob train", "spec/shutdownAfterJobFinishes", GONE),
    ("queued", "RayJob train", "metadata/labels", {}),
    ("queued", "RayJob train", "spec/clusterSelector", {"ray.io/cluster": "biovlm"}),
    ("ray-token", "RayJob train", f"{CLUSTER}/authOptions", GONE),
    ("ray-token", "RayJob train", f"{CLUSTER}/authOptions/mode", "disabled"),
    ("ray-token", "RayJob train", f"{CLUSTER}/rayVersion", "2.51.1"),
    ("ray-inside", "RayJob train", f"{HEAD}/serviceType", "LoadBalancer"),
    ("ray-inside", "RayJob train", f"{HEAD}/serviceType", "NodePort"),
    ("ray-inside", "RayJob train", f"{HEAD}/enableIngress", True),
    ("ray-inside", "RayJob train", f"{HEAD}/template/spec/containers/0/ports/0", {"containerPort": 10001}),
    ("head-without-gpu", "RayJob train", f"{HEAD}/rayStartParams/num-cpus", GONE),
    ("known-submitter", "RayJob train", "spec/submissionMode", GONE),
    ("known-submitter", "RayJob train", "spec/submissionMode", "SidecarMode"),
    ("not-outside", "Service mlflow", "spec/type", "LoadBalancer"),
    ("not-outside", "Service mlflow", "spec/type", "NodePort"),
    ("not-outside", "Service mlflow", "spec/externalIPs", ["192.0.2.1"]),
    ("not-outside", "Service mlflow", "kind", "Ingress"),
    ("all-lifted", "CronJob nightly", "kind", "PodFactory"),
    ("closed-by-default", "NetworkPolicy closed", "spec/podSelector", {"matchLabels": {"a": "b"}}),
    ("closed-by-default", "NetworkPolicy closed", "spec/policyTypes", ["Ingress"]),
    ("closed-by-default", "NetworkPolicy closed", "metadata/namespace", "elsewhere"),
    ("no-metadata", "NetworkPolicy ray-to-s3", "spec/egress/0/to/0/ipBlock/except", GONE),
    ("no-metadata", "NetworkPolicy ray-to-s3", "spec/egress/0", {}),
    ("no-metadata", "NetworkPolicy ray-to-s3", "spec/egress/0", {"to": [{"ipBlock": {"cidr": "::/0"}}]}),
    ("step-non-root", "platforms", f"{ON_KUBERNETES}/securityContext", GONE),
    ("step-non-root", "platforms", f"{ON_KUBERNETES}/securityContext/runAsUser", "0"),
    ("step-without-gpu", "pipeline", "components/comp-promote/taskConfigPassthroughs", GONE),
    ("step-without-gpu", "pipeline", "components/comp-promote/taskConfigPassthroughs/0/applyToTask", True),
    ("limits-by-default", "LimitRange limits", "spec/limits/0/default", GONE),
    ("limits-by-default", "LimitRange limits", "spec/limits/0/defaultRequest/ephemeral-storage", GONE),
    ("step-deadline", "platforms", f"{ON_KUBERNETES}/activeDeadlineSeconds", GONE),
    ("step-retries", "pipeline", f"{TASK}/retryPolicy/maxRetryCount", 3),
    ("gates-uncached", "pipeline", f"{TASK}/cachingOptions/enableCache", True),
    ("key-where-it-signs", "platforms", f"{ON_KUBERNETES}/secretAsEnv/0/keyToEnv/0/secretKey", "signing.pem"),
    (
        "key-where-it-signs",
        "platforms",
        f"{ON_KUBERNETES}/secretAsVolume",
        [{"secretName": "biovlm-signing", "mountPath": "/keys"}],
    ),
    ("step-no-secret-by-value", "pipeline", f"{STEP}/env/0", {"name": "API_TOKEN", "value": "x"}),
    ("step-no-secret-by-value", "pipeline", f"{STEP}/args/0", KEY),
]

CONSEQUENCES = {"closed-by-default": {"no-metadata"}}  # what is not closed reaches every address


@pytest.fixture(scope="module")
def good():
    documents = read([Path(__file__).with_name("good.yaml")])
    template = find(documents, "CronJob nightly")["spec"]["jobTemplate"]["spec"]["template"]
    cluster = find(documents, "RayJob train")["spec"]["rayClusterSpec"]
    cluster["headGroupSpec"]["template"] = copy.deepcopy(template)
    cluster["workerGroupSpecs"][0]["template"] = copy.deepcopy(template)
    return documents


def broken(documents, **options):
    return {finding.rule.name for finding in check(documents, **options)}


def test_the_good_objects_break_no_rule(good):
    assert [finding.letter() for finding in check(good)] == []


@pytest.mark.parametrize(("rule", "name", "path", "value"), MUTATIONS)
def test_taking_a_field_away_turns_its_rule_red_and_no_other(good, rule, name, path, value):
    assert broken(changed(good, name, path, value)) == {rule} | CONSEQUENCES.get(rule, set())


def test_a_gpu_on_the_head_is_refused(good):
    path = f"{HEAD}/template/spec/containers/0/resources"
    told = {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi", "nvidia.com/gpu": "1"}
    assert broken(changed(good, "RayJob train", path, {"requests": told, "limits": told})) == {"head-without-gpu"}


def test_every_rule_has_a_mutation():
    for_release = {rule.name for rule in RULES if rule.for_release}
    assert {rule.name for rule in RULES} - for_release == {mutation[0] for mutation in MUTATIONS}


def test_a_placeholder_passes_as_an_example_and_not_for_a_release(good):
    zeros = changed(good, "CronJob nightly", f"{MAIN}/image", "biovlm@sha256:" + 64 * "0")
    assert broken(zeros) == set()
    assert broken(zeros, release=True) == {"real-digest"}


def test_a_step_by_tag_passes_as_an_example_and_not_for_a_release(good):
    tag = changed(good, "pipeline", f"{STEP}/image", "biovlm-launcher-python")
    assert broken(tag) == set()
    assert broken(tag, release=True) == {"step-image-by-digest"}


def test_no_two_rules_have_one_name_and_each_tells_why_and_what_to_do():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.remedy for rule in RULES)


@pytest.mark.parametrize(
    "value", ["s3://biovlm/store", "sha256:" + 64 * "a", "postgresql+psycopg2:///mlflow", "cloud.provider.com/topology-block"]
)
def test_what_only_resembles_a_secret_is_let_through(good, value):
    assert not broken(changed(good, "CronJob nightly", f"{MAIN}/env/1", {"name": "PLACE", "value": value}))

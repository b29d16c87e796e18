"""The RayJob: what it must hold, and what KubeRay, Kueue and the published schema say to it."""

from __future__ import annotations

import copy
import dataclasses
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from components.platform import pools
from components.platform.kuberay import manifest
from components.platform.kuberay.rules import DNS_1035, violations
from components.platform.kuberay.site import Site, Submission
from model.errors import ConfigError
from tests.standins.crd import crd
from tests.standins.work import RUN, SITE, work

POOLS = pools.load()


def job(pool="l4", site=SITE, before=0, **more):
    return manifest.ray_job(work(pool=pool, **more), pool, POOLS[pool], site, before)


def template(body, group="workers"):
    cluster = body["spec"]["rayClusterSpec"]
    return (cluster["workerGroupSpecs"][0] if group == "workers" else cluster["headGroupSpec"])["template"]


def container(body, group="workers"):
    return template(body, group)["spec"]["containers"][0]


def change(body, path, value):
    """A copy in which the field at the dotted path is `value`; None removes it."""
    body = copy.deepcopy(body)
    node = body
    *way, last = [int(part) if part.isdigit() else part for part in path.replace("~", "/").split(".")]
    for part in way:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return body


@pytest.mark.parametrize("pool", [*POOLS])
@pytest.mark.parametrize("submission", [*Submission])
def test_the_job_of_every_pool_has_the_published_form_and_keeps_all_rules(pool, submission):
    gpus = 1 if POOLS[pool].gpus_per_node else 0
    site = dataclasses.replace(SITE, submission=submission)
    body = job(pool, site, workers=1 if POOLS[pool].mig else 4, gpus_per_worker=gpus)
    assert not crd("kuberay/ray.io_rayjobs.yaml").errors(body)
    assert not violations(body)


def test_a_field_that_the_schema_does_not_know_is_seen():
    """The stand-in's own teeth: at the top, in a pod, in a container, a wrong type, a wrong label."""
    definition, body = crd("kuberay/ray.io_rayjobs.yaml"), job()
    head = "spec.rayClusterSpec.headGroupSpec.template"
    for path, value in [
        ("spec.entryPoint", "x"),
        (f"{head}.spec.tolerations", [{"kee": "x"}]),
        (f"{head}.spec.containers.0.resource", {}),
        (f"{head}.metadata.label", {}),
        ("spec.backoffLimit", "0"),
        ("spec.backoffLimit", 2**31),
        ("spec.preRunningDeadlineSeconds", 0),
        ("spec.managedBy", "me"),
        ("spec.deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}),
        ("metadata.labels", {"a": "b c"}),
        ("metadata.name", "A"),
        ("apiVersion", "ray.io/v1alpha1"),
    ]:
        assert definition.errors(change(body, path, value)), path


def test_workers_get_the_pool_and_the_head_gets_none_of_it():
    body = job("h100", workers=16, cpus_per_worker=3.5, memory_gib=20)
    pod, ray = template(body)["spec"], container(body)
    assert ray["resources"]["limits"] == {"cpu": "28", "memory": "288Gi", "nvidia.com/gpu": "8"}
    assert pod["nodeSelector"] == {"biovlm.io/pool": "h100"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert template(body)["metadata"]["annotations"] == {
        "kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/topology-block"
    }
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "128Gi"}} in pod["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in ray["volumeMounts"]
    group = body["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert group["labels"] == {"biovlm.io/pool": "h100", "biovlm.io/accelerator": "H100"}
    head = body["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "nvidia.com/gpu" not in container(body, "head")["resources"]["limits"]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container(body, "head")["env"]
    assert template(body, "head")["spec"]["restartPolicy"] == "Never"
    assert "nodeSelector" not in template(body, "head")["spec"]


def test_pods_on_spot_nodes_look_out_for_the_notice_and_stop_in_its_time():
    body = job("spot")
    assert {"name": "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "value": "1"} in container(body)["env"]
    assert template(body)["spec"]["terminationGracePeriodSeconds"] == 25
    assert container(body)["lifecycle"]["preStop"]["exec"]["command"][-1] == "20"
    assert not [v for v in container(job("l4"))["env"] if v["name"] == "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"]


def test_the_job_says_its_deadlines_queue_priority_and_who_pays():
    body = job(deadline_hours=2, pre_running_minutes=10)
    spec, labels = body["spec"], body["metadata"]["labels"]
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (7200, 600)
    assert spec["shutdownAfterJobFinishes"]
    assert spec["suspend"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert labels["kueue.x-k8s.io/queue-name"] == "biovlm-l4"
    assert labels["kueue.x-k8s.io/priority-class"] == "biovlm-normal"
    cost = {"biovlm.io/team": "radiology", "biovlm.io/run": RUN, "biovlm.io/recipe": "tiny", "biovlm.io/step": "align"}
    for found in (labels, template(body)["metadata"]["labels"], template(body, "head")["metadata"]["labels"]):
        assert cost.items() <= found.items()
    assert "kueue.x-k8s.io/queue-name" not in template(body)["metadata"]["labels"]
    assert [(o["kind"], o["name"], o["uid"]) for o in body["metadata"]["ownerReferences"]] == [
        ("Pod", "launcher-1", "uid-of-launcher-1")
    ]


def test_the_pods_read_secrets_by_name_and_the_run_is_named_by_its_key():
    env = {v["name"]: v["value"] for v in container(job())["env"]}
    assert container(job())["envFrom"] == [{"secretRef": {"name": "biovlm-store-train"}}]
    assert env["BIOVLM_RAY_STORAGE"] == "s3://bucket/store/ray"
    assert not [name for name in env if re.search("KEY|TOKEN|PASSWORD|SECRET", name)]


PASSED_ON = {
    "tolerations": [{"key": "team", "operator": "Equal", "value": "radiology", "effect": "NoSchedule"}],
    "node_selector": {"zone": "b"},
    "volumes": [{"name": "fast", "persistentVolumeClaim": {"claimName": "fast"}}],
    "volume_mounts": [{"name": "fast", "mountPath": "/fast"}, {"name": "fast", "mountPath": "/scratch"}],
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "BIOVLM_STORE", "value": "s3://another/store"},
        {
            "name": "PROXY_PASSWORD",
            "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "password"}},
        },
        {"name": "BIOVLM_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
    ],
}


def test_what_kfp_passes_on_reaches_the_workers_and_takes_nothing_from_them():
    body = job(site=dataclasses.replace(SITE, passed_on=PASSED_ON))
    plain, pod = template(job())["spec"], template(body)["spec"]
    assert pod["tolerations"] == [*plain["tolerations"], *PASSED_ON["tolerations"]]
    assert pod["nodeSelector"] == {"zone": "b", **plain["nodeSelector"]}
    assert pod["volumes"] == [*plain["volumes"], *PASSED_ON["volumes"]]
    assert [m["mountPath"] for m in container(body)["volumeMounts"]] == ["/tmp", "/scratch", "/dev/shm", "/fast"]
    env = {variable["name"]: variable for variable in container(body)["env"]}
    assert env["HTTPS_PROXY"]["value"] == "http://proxy:3128"
    assert env["BIOVLM_STORE"]["value"] == SITE.store
    assert env["PROXY_PASSWORD"] == PASSED_ON["env"][2]
    assert "BIOVLM_POD_UID" not in env
    assert "nodeSelector" not in template(body, "head")["spec"]
    assert not crd("kuberay/ray.io_rayjobs.yaml").errors(body)
    assert not violations(body)


def test_a_secret_that_is_passed_on_by_value_is_refused():
    secret = {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "not for a manifest"}]}
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY, which looks like a secret") as refused:
        job(site=dataclasses.replace(SITE, passed_on=secret))
    assert "not for a manifest" not in str(refused.value)


RESTRICTED = {
    "runAsNonRoot": lambda pod, ray: pod["securityContext"]["runAsNonRoot"] is True,
    "numeric user": lambda pod, ray: pod["securityContext"]["runAsUser"] > 0,
    "seccomp": lambda pod, ray: pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
    "no escalation": lambda pod, ray: ray["securityContext"]["allowPrivilegeEscalation"] is False,
    "no capabilities": lambda pod, ray: ray["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "read-only root": lambda pod, ray: ray["securityContext"]["readOnlyRootFilesystem"] is True,
    "no token": lambda pod, ray: pod["automountServiceAccountToken"] is False,
    "digest": lambda pod, ray: re.search("@sha256:[0-9a-f]{64}$", ray["image"]) is not None,
    "requests are limits": lambda pod, ray: ray["resources"]["requests"] == ray["resources"]["limits"],
    "no host": lambda pod, ray: not {"hostNetwork", "hostPID", "hostIPC"} & set(pod),
    "volumes": lambda pod, ray: all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"]),
}


@pytest.mark.parametrize("rule", [*RESTRICTED])
@pytest.mark.parametrize("group", ["head", "workers"])
def test_the_pods_keep_the_restricted_profile(rule, group):
    body = job()
    assert RESTRICTED[rule](template(body, group)["spec"], container(body, group))


HEAD, WORKER = "spec.rayClusterSpec.headGroupSpec", "spec.rayClusterSpec.workerGroupSpecs.0"
BROKEN = [
    ("metadata.name", "a" * 48, "48 characters"),
    ("metadata.name", "9-tiny", "DNS-1035"),
    ("metadata.labels.biovlm.io~team", "a b", "is no label"),
    ("metadata.labels.kueue.x-k8s.io~queue-name", None, "past all quotas"),
    ("spec.shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes"),
    ("spec.clusterSelector", {"ray.io/cluster": "x"}, "cannot be suspended"),
    ("spec.clusterSelector", {"ray.io/cluster": "x"}, "Kueue does not see"),
    ("spec.clusterSelector", {"other": "x"}, "names no cluster"),
    ("spec.submissionMode", "Fax", "not known"),
    ("spec.submissionMode", "SidecarMode", ""),
    ("spec.ttlSecondsAfterFinished", -1, "ttlSecondsAfterFinished"),
    ("spec.deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf"}]}, "deletionRules exclude"),
    ("spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
    ("spec.backoffLimit", -1, "backoffLimit"),
    ("spec.runtimeEnvYAML", "a: [", "runtimeEnvYAML"),
    ("spec.rayClusterSpec.rayVersion", "2.51.1", "2.52"),
    ("spec.rayClusterSpec.rayVersion", None, "2.52"),
    ("spec.rayClusterSpec.authOptions.enableK8sTokenAuth", True, "Kubernetes tokens"),
    (f"{HEAD}.template.spec.containers", [], "no container"),
    (f"{HEAD}.resources", {"cpu": "1"}, "twice"),
    (f"{WORKER}.rayStartParams.labels", "a=b", "labels in rayStartParams"),
    (f"{WORKER}.minReplicas", 3, "outside 3..2"),
    (f"{WORKER}.maxReplicas", None, "minReplicas and maxReplicas"),
    (f"{WORKER}.groupName", "head", "stands twice"),
    (f"{WORKER}.template.metadata.labels", {"kueue.x-k8s.io/queue-name": "q"}, "RayJob alone"),
    (f"{WORKER}.template.spec.containers.0.resources.requests.cpu", "1m", "not equal"),
    ("spec.rayClusterSpec.enableInTreeAutoscaling", True, "elastic-job"),
    ("spec.rayClusterSpec", None, "neither"),
]


@pytest.mark.parametrize(("path", "value", "said"), BROKEN)
def test_what_the_controllers_would_refuse_is_known_before(path, value, said):
    way = path.split(".")
    if path.startswith("metadata.labels."):
        body = copy.deepcopy(job())
        key = path.removeprefix("metadata.labels.").replace("~", "/")
        body["metadata"]["labels"] = {k: v for k, v in {**body["metadata"]["labels"], key: value}.items() if v is not None}
    else:
        body = change(job(), ".".join(way), value)
    found = "; ".join(violations(body))
    assert said in found if said else not found


def test_sidecar_mode_refuses_what_it_cannot_do():
    body = change(job(), "spec.submissionMode", "SidecarMode")
    for path, value in [
        ("spec.submitterPodTemplate", {"spec": {"containers": []}}),
        ("spec.submitterConfig", {"backoffLimit": 1}),
        (f"{HEAD}.template.spec.restartPolicy", "Always"),
    ]:
        assert any("SidecarMode" in complaint for complaint in violations(change(body, path, value)))
    interactive = change(change(job(), "spec.submissionMode", "InteractiveMode"), "spec.backoffLimit", 1)
    assert any("InteractiveMode" in complaint for complaint in violations(interactive))


def test_seventeen_worker_groups_are_the_most():
    body = job()
    group = body["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    body["spec"]["rayClusterSpec"]["workerGroupSpecs"] = [{**group, "groupName": f"g{n}"} for n in range(17)]
    assert not violations(body)
    body["spec"]["rayClusterSpec"]["workerGroupSpecs"].append({**group, "groupName": "g17"})
    assert any("18 worker groups" in complaint for complaint in violations(body))


@hypothesis.given(recipe=st.text(min_size=1, max_size=60), run=st.text(max_size=80), step=st.from_regex(r"^[a-z][a-z_-]{0,30}\Z"))
@hypothesis.settings(max_examples=100, deadline=None)
def test_any_name_is_a_short_dns_label_and_any_label_is_one(recipe, run, step):
    name = manifest.job_name(work(recipe=recipe, run_id=run, step=step), "d")
    assert len(name) <= 47
    assert DNS_1035.match(name)
    assert re.match(r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$", manifest.label(run))


def test_the_name_is_of_the_run_and_the_spec_and_not_of_the_attempt():
    names = [job(), job(before=1), job(run_id="run-2"), job(memory_gib=5), job(step="task")]
    first, again, *others = [body["metadata"]["name"] for body in names]
    assert first == again
    assert len({first, *others}) == 4
    digests = [body["metadata"]["labels"][manifest.SPEC_DIGEST] for body in names[:2]]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("before", "allowed"), [(0, 3), (1, 2), (2, 1)])
def test_kuberay_never_retries_and_all_layers_together_try_three_times(before, allowed):
    body = job(before=before, max_failures=2)
    assert body["spec"]["backoffLimit"] == 0
    assert body["metadata"]["annotations"][manifest.ALLOWED] == str(allowed)
    assert before + allowed == 3
    assert {"name": "BIOVLM_TRIES_BEFORE", "value": str(before)} in container(body, "head")["env"]


def test_bad_input_is_a_letter_before_anything_starts():
    with pytest.raises(ConfigError, match="too long for a RayJob"):
        job(step="s" * 40)
    with pytest.raises(ConfigError, match="address of its spec"):
        manifest.ray_job(dataclasses.replace(work(), spec_uri="s3://bucket/a;rm -rf x"), "l4", POOLS["l4"], SITE)
    with pytest.raises(ConfigError, match="address of its result"):
        manifest.ray_job(dataclasses.replace(work(), result_uri="s3://bucket/$(id)"), "l4", POOLS["l4"], SITE)


ENVIRONMENT = {
    "BIOVLM_NAMESPACE": "biovlm",
    "BIOVLM_TRAIN_IMAGE": SITE.image,
    "BIOVLM_STORE": "s3://bucket/store/",
    "BIOVLM_TEAM": "radiology",
    "BIOVLM_RAY_SECRETS": "biovlm-store-train,proxy",
    "BIOVLM_RAY_ENVIRONMENT": "MLFLOW_TRACKING_URI,ABSENT",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "BIOVLM_POD_NAME": "p",
    "BIOVLM_POD_UID": "u",
}


def test_the_site_is_read_from_the_launchers_environment():
    site = Site.from_environment(ENVIRONMENT)
    assert (site.store, site.secrets) == ("s3://bucket/store", ("biovlm-store-train", "proxy"))
    assert site.environment == (("MLFLOW_TRACKING_URI", "http://mlflow:5000"),)
    assert site.submission is Submission.HTTP  # a namespace that enforces the restricted profile refuses KubeRay's own sidecar
    assert site.owner is not None
    assert site.owner.uid == "u"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BIOVLM_TEAM", "", "needs BIOVLM_TEAM"),
        ("BIOVLM_TRAIN_IMAGE", "registry.example/train:latest", "by digest"),
        ("BIOVLM_STORE", "s3://bucket/a b", "BIOVLM_STORE"),
        ("BIOVLM_RAY_SUBMISSION", "Fax", "HTTPMode or SidecarMode"),
        ("BIOVLM_RAY_ENVIRONMENT", "AWS_SECRET_ACCESS_KEY", "looks like a secret"),
        ("BIOVLM_RAY_SECRETS", "biovlm-store-train,biovlm-signing", "names biovlm-signing, which belongs to the steps"),
    ],
)
def test_a_site_that_cannot_be_is_a_letter(name, value, said):
    with pytest.raises(ConfigError) as error:
        Site.from_environment({**ENVIRONMENT, name: value})
    assert said in str(error.value)

"""The KubeRay back end, with the real Kubernetes client against the stand-in (tests/standins/kuberay.py)."""

from __future__ import annotations

import re

import pytest

from components.platform import pools
from components.platform.heavy import Result
from components.platform.kuberay import manifest
from components.platform.kuberay.client import Cluster, connect
from model.errors import BiovlmError, ConfigError, ExitCode, InternalError, MissingInputError, RefusedError
from tests.standins.kuberay import (
    NAMESPACE,
    RUNNING,
    SUCCEEDED,
    TOKEN,
    KubeRay,
    admit,
    drop,
    evict,
    fail,
    status,
    too_old,
    vanish,
)
from tests.standins.work import KUBECONFIG, SITE, Clock, back_end, connection, way_to, work

DONE = Result(0)
SMOOTH = [admit(), RUNNING, SUCCEEDED]
FAILED = status("Failed", "FAILED", reason="AppFailed", message="what the job printed")


def do(script, result=None, wanted=None, site=SITE, cluster=None, **more):
    """Run the work against a script; what was told, the error if there was one, and the stand-in."""
    told, error = [], None
    with cluster or KubeRay(script) as server:
        if cluster:
            server.script = list(script)
        ask = result if callable(result) else lambda: result if server.created and not server.script else None
        try:
            back_end(server, site, **more).run(wanted or work(), told.append, ask)
        except BiovlmError as letter:
            error = letter
    return told, error, server


def states(told):
    """First words after the job's name."""
    return [re.sub(r"^RayJob \S+:? ", "", words).split(":")[0].split(" ")[0] for words in told]


QUEUED = status("Suspended")
TABLE = {
    "queued, admitted, done": (
        [status(""), QUEUED, admit(), RUNNING, SUCCEEDED],
        DONE,
        ["is", "queued", "starting", "running"],
        0,
    ),
    "preempted, requeued, done": (
        [admit(), RUNNING, evict(), QUEUED, admit(), RUNNING, SUCCEEDED],
        DONE,
        ["is", "starting", "running", "preempted", "starting", "running"],
        0,
    ),
    "retrying is no end": (
        [admit(), RUNNING, status("Retrying", "FAILED"), status("Initializing"), RUNNING, SUCCEEDED],
        DONE,
        ["is", "starting", "running", "retrying", "starting", "running"],
        0,
    ),
    "a new status is waited out": (
        [admit(), status("Thawing"), RUNNING, SUCCEEDED],
        DONE,
        ["is", "starting", "status", "running"],
        0,
    ),
    "failed with a result that says why": (
        [admit(), RUNNING, FAILED],
        Result(79, "diverged", "a hint"),
        ["is", "starting", "running"],
        79,
    ),
    "failed without a result": ([admit(), RUNNING, FAILED], None, ["is", "starting", "running"], 70),
    "failed after the work was done": (
        [admit(), RUNNING, status("Failed", "RUNNING", reason="SubmissionFailed")],
        DONE,
        ["is", "starting", "running"],
        0,
    ),
    "submission failed, nothing done": ([admit(), status("Failed", "", reason="SubmissionFailed")], None, ["is", "starting"], 70),
    "out of time": (
        [admit(), RUNNING, status("Failed", "RUNNING", reason="DeadlineExceeded")],
        None,
        ["is", "starting", "running"],
        77,
    ),
    "never ran": ([admit(), status("Failed", "", reason="PreRunningDeadlineExceeded")], None, ["is", "starting"], 70),
    "validation failed": ([status("ValidationFailed", reason="ValidationFailed", message="no")], None, ["is"], 78),
    "stopped ends as complete": ([admit(), RUNNING, status("Complete", "STOPPED")], None, ["is", "starting", "running"], 75),
    "deleted": ([admit(), RUNNING, vanish()], None, ["is", "starting", "running"], 70),
    "deleted after the work was done": ([admit(), RUNNING, vanish()], DONE, ["is", "starting", "running"], 0),
    "succeeded without a result": ([admit(), RUNNING, SUCCEEDED], None, ["is", "starting", "running"], 70),
    "succeeded with a result that failed": ([admit(), RUNNING, SUCCEEDED], Result(65, "bad"), ["is", "starting", "running"], 65),
    "errors of the server": (
        [fail(500), admit(), fail(503, 3), RUNNING, fail(429), SUCCEEDED],
        DONE,
        ["is", "queued", "starting", "running"],
        0,
    ),
    "dropped watches": ([admit(), drop(), RUNNING, drop(), drop(), too_old(), SUCCEEDED], DONE, ["is", "starting", "running"], 0),
}


@pytest.mark.parametrize("row", [*TABLE])
def test_every_row_of_the_state_table(row):
    script, result, expected, code = TABLE[row]
    told, error, server = do(script, result)
    assert (error.exit_code if error else 0) == code
    assert states(told) == expected
    assert len(server.created) == 1
    assert not server.script


def test_a_letter_names_the_job_and_not_what_it_printed():
    _, error, server = do([admit(), RUNNING, FAILED])
    assert server.created[0]["metadata"]["name"] in str(error)
    assert "printed" not in str(error)
    assert error.hint


def test_what_the_queue_waits_for_is_told():
    cluster = KubeRay()
    said = "couldn't assign flavors to pod set l4: insufficient unused quota"
    cluster.workloads = [{"status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": said}]}}]
    told, _, _ = do([QUEUED, admit(), RUNNING, SUCCEEDED], DONE, cluster=cluster)
    assert said in told[1]


def test_work_that_is_done_starts_no_job():
    told, error, server = do([], lambda: DONE)
    assert error is None
    assert told == ["done by an earlier attempt"]
    assert not server.requests


def test_a_job_past_its_limits_is_deleted():
    _, error, server = do([QUEUED], wanted=work(queue_hours=0.01))
    assert error.exit_code == ExitCode.REFUSED
    assert "in queues" in str(error)
    (body,) = server.jobs.values()
    assert body["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize(
    ("wanted", "quota", "said"),
    [
        ({"workers": 9}, {}, "asks for 9 nvidia.com/gpu, the queue can give 8"),
        ({"workers": 2, "memory_gib": 2000}, {}, "memory, the queue can give 2048Gi"),
        ({}, {"nvidia.com/gpu": None}, "which the queue does not hold"),
    ],
)
def test_a_quota_that_can_never_fit_fails_at_once(wanted, quota, said):
    cluster = KubeRay()
    cluster.queue("biovlm-l4", {"nvidia.com/gpu": 8} if not quota else {})
    _, error, server = do(SMOOTH, DONE, wanted=work(**wanted), cluster=cluster)
    assert isinstance(error, ConfigError)
    assert said in str(error)
    assert not server.created


def test_what_a_queue_may_borrow_counts():
    cluster = KubeRay()
    cluster.queue("biovlm-l4", {"nvidia.com/gpu": 8}, cohortName="all")
    _, error, _ = do(SMOOTH, DONE, work(workers=9), cluster=cluster)
    assert error is None


def test_a_pools_own_maximum_counts_where_the_queue_may_not_be_read():
    cluster = KubeRay()
    cluster.forbidden = {("GET", "clusterqueues"), ("GET", "workloads")}
    _, error, server = do(SMOOTH, DONE, wanted=work(workers=9), cluster=cluster)
    assert isinstance(error, ConfigError)
    assert "the pool has 8 at most" in str(error)
    assert not server.created


def test_a_queue_that_is_not_there_is_a_letter():
    cluster = KubeRay()
    cluster.queues.clear()
    _, error, _ = do(SMOOTH, DONE, cluster=cluster)
    assert isinstance(error, MissingInputError)
    assert "no LocalQueue biovlm-l4" in str(error)


def test_an_expired_token_is_read_again_once_and_then_a_letter():
    _, error, server = do(SMOOTH, DONE, token="old")
    assert isinstance(error, RefusedError)
    assert "does not know this token" in str(error)
    assert len([path for _, path, _ in server.requests if "rayjobs" in path]) == 2
    tokens = iter(["old", "a-token"])
    with KubeRay() as server:
        cluster = Cluster(NAMESPACE, lambda: connection(server.address, next(tokens)))
        assert cluster.read("a") is None


def test_a_right_that_is_missing_is_a_letter_and_no_retry():
    cluster = KubeRay()
    cluster.forbidden = {("POST", "rayjobs")}
    _, error, server = do(SMOOTH, DONE, cluster=cluster)
    assert isinstance(error, RefusedError)
    assert "forbidden (403)" in str(error)
    assert len([method for method, _, _ in server.requests if method == "POST"]) == 1


def test_a_cluster_without_kuberay_is_a_letter():
    cluster = KubeRay()
    cluster.installed = False
    _, error, _ = do(SMOOTH, DONE, cluster=cluster)
    assert isinstance(error, MissingInputError)
    assert "knows no RayJobs in the namespace biovlm (404)" in str(error)
    with KubeRay() as server:
        server.installed = False
        with pytest.raises(MissingInputError):
            way_to(server).jobs("")


def test_a_server_that_does_not_answer_is_asked_for_a_quarter_of_an_hour():
    clock = Clock()
    _, error, _ = do([admit(), RUNNING, fail(503, 10**4)], clock=clock)
    assert isinstance(error, InternalError)
    assert "did not answer for 15 min (last: 503)" in str(error)
    assert 900 <= clock.now < 1000


def test_a_server_that_is_gone_is_a_letter():
    with KubeRay() as server:
        pass
    with pytest.raises(InternalError, match="did not answer"):
        back_end(server).run(work(), print, lambda: None)


def test_the_stand_in_refuses_what_the_server_would():
    """Its own teeth: an unknown field, a missing strictness, a status, an unknown path."""
    with KubeRay() as server:
        body = manifest.ray_job(work(), "l4", pools.load()["l4"], SITE)
        cluster = Cluster(NAMESPACE, lambda: connection(server.address))
        with pytest.raises(ConfigError, match="strict decoding error"):
            cluster.create({**body, "spec": {**body["spec"], "entryPoint": "x"}})
        assert cluster.create({**body, "status": {"jobDeploymentStatus": "Complete"}})
        assert "status" not in next(iter(server.jobs.values()))
        assert not cluster.create(body)


def test_a_job_that_kuberay_would_refuse_is_validation_failed():
    """The rules are asked before a job is sent, so this one goes around them."""
    with KubeRay() as server:
        body = manifest.ray_job(work(), "l4", pools.load()["l4"], SITE)
        body["spec"]["shutdownAfterJobFinishes"] = False
        server.add(body)
        assert next(iter(server.jobs.values()))["status"]["jobDeploymentStatus"] == "ValidationFailed"


def test_outside_a_pod_the_users_kubeconfig_is_taken_and_without_one_it_is_a_letter(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    with pytest.raises(MissingInputError, match="no cluster"):
        connect()
    with KubeRay() as server:
        path.write_text(KUBECONFIG.format(address=server.address, token=TOKEN))
        assert Cluster(NAMESPACE).jobs("") == []

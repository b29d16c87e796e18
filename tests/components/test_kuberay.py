"""The KubeRay back end, with the real Kubernetes client against the stand-in (tests/standins/kuberay.py)."""

from __future__ import annotations

import dataclasses
import datetime
import re

import pytest

from components.platform.heavy import Result
from components.platform.kuberay import manifest
from components.platform.kuberay.client import Cluster
from components.platform.kuberay.reaper import RunState, leftovers
from components.platform.kuberay.site import Owner
from model.errors import BiovlmError, ConfigError, ExitCode, InternalError, MissingInputError, RefusedError
from tests.standins.kuberay import (
    NAMESPACE,
    RUNNING,
    SUCCEEDED,
    KubeRay,
    admit,
    drop,
    evict,
    fail,
    status,
    too_old,
    vanish,
)
from tests.standins.work import SITE, Clock, back_end, connection, work

DONE = Result(0)
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


def test_a_later_attempt_adopts_the_job_and_owns_it_too():
    told = []
    with KubeRay([admit(), RUNNING]) as server:
        first = manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE)
        server.add(first)
        server.script = [RUNNING, RUNNING, SUCCEEDED]
        later = dataclasses.replace(SITE, owner=Owner("launcher-2", "uid-of-launcher-2"))
        back_end(server, later).run(work(), told.append, lambda: DONE if not server.script else None)
        assert len(server.created) == 1
        (body,) = server.jobs.values()
    assert [owner["name"] for owner in body["metadata"]["ownerReferences"]] == ["launcher-1", "launcher-2"]
    assert "adopted" in told[0]


def test_a_conflict_while_owning_is_read_again():
    with KubeRay() as server:
        server.add(manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE))
        (name,) = server.jobs
        cluster = Cluster(NAMESPACE, lambda: connection(server.address), clock=Clock(), sleep=lambda _: None)
        read, reads = cluster.read, []

        def overtaken(wanted):
            """A read, and behind it another's change."""
            found = read(wanted)
            reads.append(found)
            if len(reads) == 1:
                server.touch(server.jobs[wanted])
            return found

        cluster.read = overtaken
        cluster.own(name, manifest.owner_reference("launcher-2", "uid-2"))
        assert len(reads) == 2
        assert len(server.jobs[name]["metadata"]["ownerReferences"]) == 2


def test_a_job_of_the_same_name_and_another_spec_is_refused_and_left():
    with KubeRay() as server:
        body = manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE)
        body["metadata"]["labels"][manifest.SPEC_DIGEST] = "of-another"
        server.add(body)
        with pytest.raises(RefusedError, match="of another spec"):
            back_end(server).run(work(), print, lambda: None)
        assert len(server.jobs) == 1
        assert not [method for method, _, _ in server.requests if method == "DELETE"]


def failed_before(server, before=0, result=None, ran=True, **status_fields):
    """An earlier attempt's job that failed."""
    body = server.add(manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE, before))
    body["status"] = {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED" if ran else "",
        "reason": "AppFailed",
        **status_fields,
    }
    server.created.clear()


def test_a_failed_job_is_replaced_and_the_tries_are_counted_on_it():
    with KubeRay() as server:
        failed_before(server, result=Result(70))
        server.script = [admit(), RUNNING, SUCCEEDED]
        told = []
        back_end(server).run(work(), told.append, lambda: DONE if server.created and not server.script else Result(70))
        (body,) = server.created
    assert body["metadata"]["annotations"][manifest.BEFORE] == "1"
    assert "try 2 of 3" in told[0]


@pytest.mark.parametrize(
    ("before", "result", "ran", "follows"),
    [
        (0, Result(70), True, 1),
        (1, Result(70), True, 2),
        (2, Result(70), True, None),
        (0, Result(70, tries=2), True, 2),
        (0, Result(70, tries=3), True, None),
        (0, None, True, None),  # it ran and left nothing: it may have used all its restarts
        (0, None, False, 1),  # it never ran: machines or images
        (2, None, False, None),
        (2, Result(75), True, 2),  # a stop from outside is free
    ],
)
def test_all_layers_together_try_three_times(before, result, ran, follows):
    with KubeRay() as server:
        failed_before(server, before, ran=ran)
        server.script = [admit(), RUNNING, SUCCEEDED]
        ask = lambda: DONE if server.created and not server.script else result  # noqa: E731
        if follows is None:
            with pytest.raises(RefusedError, match="3 are allowed"):
                back_end(server).run(work(), print, ask)
            assert not server.created
        else:
            back_end(server).run(work(), print, ask)
            assert server.created[0]["metadata"]["annotations"][manifest.BEFORE] == str(follows)


@pytest.mark.parametrize("code", [64, 65, 66, 77, 78, 79])
def test_a_failure_that_cannot_change_is_tried_once(code):
    with KubeRay() as server:
        failed_before(server)
        with pytest.raises(BiovlmError, match="as before") as error:
            back_end(server).run(work(), print, lambda: Result(code, "as before"))
        assert error.value.exit_code == code
        assert not server.created


def test_a_job_that_is_being_deleted_is_let_go_first():
    with KubeRay(linger=3) as server:
        failed_before(server)
        (body,) = server.jobs.values()
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        server.script = [admit(), RUNNING, SUCCEEDED]
        back_end(server).run(work(), print, lambda: DONE if server.created and not server.script else None)
        assert len(server.created) == 1


def test_a_deletion_that_never_ends_is_a_letter():
    with KubeRay(linger=10**6) as server:
        failed_before(server)
        next(iter(server.jobs.values()))["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        with pytest.raises(InternalError, match="still being deleted after 5 min"):
            back_end(server).run(work(), print, lambda: None)


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
    _, error, server = do([], wanted=work(**wanted), cluster=cluster)
    assert isinstance(error, ConfigError)
    assert said in str(error)
    assert not server.created


def test_what_a_queue_may_borrow_counts():
    cluster = KubeRay()
    cluster.queue("biovlm-l4", {"nvidia.com/gpu": 8}, cohortName="all")
    _, error, _ = do([admit(), RUNNING, SUCCEEDED], DONE, work(workers=9), cluster=cluster)
    assert error is None


def test_a_pools_own_maximum_counts_where_the_queue_may_not_be_read():
    cluster = KubeRay()
    cluster.forbidden = {("GET", "clusterqueues"), ("GET", "workloads")}
    _, error, server = do([], wanted=work(workers=9), cluster=cluster)
    assert isinstance(error, ConfigError)
    assert "the pool has 8 at most" in str(error)
    assert not server.created


def test_a_queue_that_is_not_there_is_a_letter():
    cluster = KubeRay()
    cluster.queues.clear()
    _, error, _ = do([], cluster=cluster)
    assert isinstance(error, MissingInputError)
    assert "no LocalQueue biovlm-l4" in str(error)


def test_an_expired_token_is_read_again_once_and_then_a_letter():
    told, error, server = do([], token="old")
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
    _, error, server = do([], cluster=cluster)
    assert isinstance(error, RefusedError)
    assert "forbidden (403)" in str(error)
    assert len([method for method, _, _ in server.requests if method == "POST"]) == 1


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
        body = manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE)
        cluster = Cluster(NAMESPACE, lambda: connection(server.address))
        with pytest.raises(ConfigError, match="strict decoding error"):
            cluster.create({**body, "spec": {**body["spec"], "entryPoint": "x"}})
        assert cluster.create({**body, "status": {"jobDeploymentStatus": "Complete"}})
        assert "status" not in next(iter(server.jobs.values()))
        assert not cluster.create(body)


def test_a_job_that_kuberay_would_refuse_is_validation_failed():
    """The rules are asked before a job is sent, so this one goes around them."""
    with KubeRay() as server:
        body = manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE)
        body["spec"]["shutdownAfterJobFinishes"] = False
        server.add(body)
        assert next(iter(server.jobs.values()))["status"]["jobDeploymentStatus"] == "ValidationFailed"


def test_stop_deletes_the_jobs_of_one_run_and_reap_those_of_all_that_are_over():
    with KubeRay(linger=0) as server:
        known = back_end(server)._pools["l4"]
        for run in ("run-1", "run-2", "run-3"):
            server.add(manifest.ray_job(work(run_id=run), "l4", known, SITE))
        foreign = manifest.ray_job(work(run_id="other"), "l4", known, SITE)
        foreign["metadata"]["labels"][manifest.MANAGED] = "someone"
        server.add(foreign)
        going = {"run-2": RunState.GOING, "run-3": RunState.OVER}
        assert len(back_end(server).stop("run-1")) == 1
        reaped = back_end(server).reap(lambda run: going.get(run, RunState.UNKNOWN))
        assert [leftover.why for leftover in reaped] == ["its run run-3 is over"]
        left = [body for body in server.jobs.values() if not body["metadata"].get("deletionTimestamp")]
        assert {body["metadata"]["annotations"][manifest.RUN_ID] for body in left} == {"run-2", "other"}


def test_a_job_of_a_run_that_nobody_knows_is_reaped_after_a_day():
    made = {"creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {manifest.RUN_ID: "r"}, "name": "j"}
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for hours, count in ((1, 0), (23, 0), (25, 1)):
        assert len(leftovers([{"metadata": made}], {}, start + datetime.timedelta(hours=hours))) == count
    assert not leftovers([{"metadata": made | {"deletionTimestamp": "x"}}], {"r": RunState.OVER}, start)


def test_a_deletion_spares_a_newer_job_of_the_same_name():
    with KubeRay() as server:
        old = server.add(manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE))
        newer = server.add(manifest.ray_job(work(), "l4", back_end(server)._pools["l4"], SITE))
        cluster = Cluster(NAMESPACE, lambda: connection(server.address))
        cluster.delete(old)
        assert not newer["metadata"].get("deletionTimestamp")
        cluster.delete(newer)
        assert newer["metadata"]["deletionTimestamp"]

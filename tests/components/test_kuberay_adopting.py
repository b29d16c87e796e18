"""A RayJob that is there already, against the stand-in: adopted, replaced, refused or reaped; tries are counted over all layers."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from components.platform import pools
from components.platform.heavy import Result
from components.platform.kuberay import manifest
from components.platform.kuberay.client import Cluster
from components.platform.kuberay.reaper import RunState, leftovers
from components.platform.kuberay.site import Owner
from model.errors import BiovlmError, InternalError, RefusedError
from pipelines import reap
from tests.standins.kuberay import NAMESPACE, RUNNING, SUCCEEDED, KubeRay, admit, status
from tests.standins.work import SITE, Clock, back_end, connection, way_to, work

DONE = Result(0)
L4 = pools.load()["l4"]


def test_a_later_attempt_adopts_the_job_and_owns_it_too():
    told = []
    with KubeRay([admit(), RUNNING]) as server:
        first = manifest.ray_job(work(), "l4", L4, SITE)
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
        server.add(manifest.ray_job(work(), "l4", L4, SITE))
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
    with KubeRay([admit(), RUNNING, SUCCEEDED]) as server:
        body = manifest.ray_job(work(), "l4", L4, SITE)
        body["metadata"]["labels"][manifest.SPEC_DIGEST] = "of-another"
        server.add(body)
        with pytest.raises(RefusedError, match="of another spec"):
            back_end(server).run(work(), print, lambda: None)
        assert len(server.jobs) == 1
        assert not [method for method, _, _ in server.requests if method == "DELETE"]


def failed_before(server, before=0, ran=True):
    """An earlier attempt's job that failed."""
    body = server.add(manifest.ray_job(work(), "l4", L4, SITE, before))
    body["status"] = {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED" if ran else "",
        "reason": "AppFailed",
    }
    server.created.clear()


@pytest.mark.parametrize("linger", [1, 5])
def test_a_failed_job_is_replaced_and_the_tries_are_counted_on_it(linger):
    """Also where its deletion takes a while, so that the job is met again."""
    with KubeRay(linger=linger) as server:
        failed_before(server)
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
        server.script = [admit(), RUNNING, SUCCEEDED]
        with pytest.raises(BiovlmError, match="as before") as error:
            back_end(server).run(work(), print, lambda: Result(code, "as before"))
        assert error.value.exit_code == code
        assert not server.created


@pytest.mark.parametrize(("ran", "before"), [(False, "1"), (None, "0")])
def test_a_job_that_is_being_deleted_is_let_go_first_and_its_tries_are_counted_if_it_failed(ran, before):
    with KubeRay(linger=3) as server:
        failed_before(server, ran=ran)
        if ran is None:
            next(iter(server.jobs.values()))["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
        (body,) = server.jobs.values()
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        server.script = [admit(), RUNNING, SUCCEEDED]
        back_end(server).run(work(), print, lambda: DONE if server.created and not server.script else None)
        assert [made["metadata"]["annotations"][manifest.BEFORE] for made in server.created] == [before]


def test_a_deletion_that_never_ends_is_a_letter():
    with KubeRay(linger=10**6) as server:
        failed_before(server, ran=False)
        next(iter(server.jobs.values()))["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        with pytest.raises(InternalError, match="still being deleted after 5 min"):
            back_end(server).run(work(), print, lambda: None)


def test_stop_deletes_the_jobs_of_one_run_and_reap_those_of_all_that_are_over():
    with KubeRay(linger=0) as server:
        stopped, going, over, other = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(4))
        for run in (stopped, going, over):
            server.add(manifest.ray_job(work(run_id=run), "l4", L4, SITE))
        foreign = manifest.ray_job(work(run_id=other), "l4", L4, SITE)
        foreign["metadata"]["labels"][manifest.MANAGED] = "someone"
        server.add(foreign)
        states, jobs = {going: RunState.GOING, over: RunState.OVER}, way_to(server)
        assert len(reap.stop(jobs, stopped)) == 1
        reaped = reap.reap(jobs, lambda run: states.get(run, RunState.UNKNOWN))
        assert [leftover.why for leftover in reaped] == [f"its run {over} is over"]
        left = [body for body in server.jobs.values() if not body["metadata"].get("deletionTimestamp")]
        assert {body["metadata"]["annotations"][manifest.RUN_ID] for body in left} == {going, other}


def test_a_job_of_a_run_that_nobody_knows_is_reaped_after_a_day():
    made = {"creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {manifest.RUN_ID: "r"}, "name": "j"}
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for hours, count in ((1, 0), (23, 0), (25, 1)):
        assert len(leftovers([{"metadata": made}], {}, start + datetime.timedelta(hours=hours))) == count
    assert not leftovers([{"metadata": made | {"deletionTimestamp": "x"}}], {"r": RunState.OVER}, start)


def test_a_deletion_spares_a_newer_job_of_the_same_name():
    with KubeRay() as server:
        old = server.add(manifest.ray_job(work(), "l4", L4, SITE))
        newer = server.add(manifest.ray_job(work(), "l4", L4, SITE))
        cluster = Cluster(NAMESPACE, lambda: connection(server.address))
        cluster.delete(old)
        assert not newer["metadata"].get("deletionTimestamp")
        cluster.delete(newer)
        assert newer["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize("says", [True, False], ids=["with a result", "without a result"])
@pytest.mark.parametrize("uses", [1, 2, 3], ids=lambda n: f"{n} starts of the workers in a job at most")
def test_the_retries_of_all_layers_do_not_multiply(says, uses):
    """A pipeline that retries ten times, Ray that restarts as often as it may, work that always fails: three starts in all."""
    starts, results = [], [None]
    with KubeRay() as server:
        for _ in range(10):
            server.script = [admit(), RUNNING, status("Failed", "FAILED", reason="AppFailed")]
            made = len(server.created)

            def result():
                return results[-1]

            with pytest.raises(BiovlmError):
                back_end(server).run(work(max_failures=2), print, result)
            if len(server.created) > made:
                allowed = int(server.created[-1]["metadata"]["annotations"][manifest.ALLOWED])
                starts.append(min(uses, allowed))
                results.append(Result(70, "failed", tries=starts[-1]) if says else None)
    assert sum(starts) <= 3
    assert sum(starts) == 3 or not says

"""The state machine of a job on a Ray cluster, and its client against a stand-in.

The stand-in answers as Ray 2.60's Jobs API does (status codes in a RuntimeError's text, ConnectionError when it is away). What it
cannot show, that jobs really run, is shown in test_ray_jobs.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.platform import jobs
from components.platform.heavy import HeavyWork, Result
from components.platform.jobs import OVER, WORKS, Act, JobsCluster, Look, step
from model.config import Resources
from model.errors import NEVER_RETRIED, ConfigError, DataError, ExitCode, InternalError, PreemptedError

WORK = HeavyWork("k" * 64, "align", "run-1", "tiny", "s3://b/p/spec.json", "s3://b/p/result.json", Resources())
DONE, STOPPED, BAD, DIED = (Result(int(code), "why", "what", job="new") for code in (0, 75, 65, 70))
OLD = Result(75, "stopped", "", job="old")
results = st.one_of(
    st.none(), st.builds(Result, st.sampled_from([0, 65, 66, 70, 73, 75, 77, 78, 79]), job=st.sampled_from(["old", "new"]))
)
looks = st.builds(Look, st.sampled_from(["", "NEW IN RAY 3", *sorted(WORKS | OVER)]), results, st.booleans(), st.just("old"))


@pytest.mark.parametrize(
    ("status", "result", "ours", "act"),
    [
        ("", None, False, Act.SUBMIT),
        ("", OLD, False, Act.SUBMIT),
        ("PENDING", None, False, Act.WAIT),
        ("RUNNING", OLD, False, Act.WAIT),
        ("STOPPED", OLD, False, Act.REPLACE),
        ("FAILED", None, False, Act.REPLACE),
        ("FAILED", DIED, False, Act.REPLACE),
        ("FAILED", BAD, False, Act.FAIL),
        ("", DONE, False, Act.DONE),
        ("PENDING", OLD, True, Act.WAIT),
        ("SUCCEEDED", DONE, True, Act.DONE),
        ("SUCCEEDED", None, True, Act.FAIL),
        ("FAILED", BAD, True, Act.FAIL),
        ("FAILED", OLD, True, Act.FAIL),
        ("STOPPED", STOPPED, True, Act.FAIL),
        ("", None, True, Act.FAIL),
        ("NEW IN RAY 3", None, True, Act.WAIT),
    ],
)
def test_what_is_done_about_a_job(status, result, ours, act):
    assert step(Look(status, result, ours, "old")) is act


@given(looks)
def test_a_job_at_work_is_neither_started_again_nor_given_up(look):
    if look.status in WORKS and not (look.result and look.result.exit_code == 0):
        assert step(look) is Act.WAIT


@given(looks)
def test_the_waiter_ends_when_our_job_has_ended_and_succeeds_only_with_a_result_of_0(look):
    act = step(look)
    if look.ours and (look.status in OVER or not look.status):
        assert act in (Act.DONE, Act.FAIL)
    assert (act is Act.DONE) == (look.result is not None and look.result.exit_code == ExitCode.DONE)


@given(looks)
def test_what_a_second_try_cannot_change_is_not_tried_again(look):
    if look.result and look.result.exit_code in NEVER_RETRIED and not look.ours:
        assert step(look) in (Act.FAIL, Act.WAIT)


@pytest.mark.parametrize(
    ("status", "result", "kind", "words"),
    [
        ("FAILED", BAD, DataError, "why"),
        ("STOPPED", None, PreemptedError, "was stopped"),
        ("FAILED", OLD, InternalError, "left no result"),
        ("SUCCEEDED", None, InternalError, "left no result"),
        ("", None, InternalError, "vanished"),
    ],
)
def test_each_end_has_its_letter(status, result, kind, words):
    found = jobs.letter(Look(status, result, True, "old"), "biovlm-align-0")
    assert type(found) is kind
    assert words in found.message
    assert found.hint


def test_the_id_is_that_of_the_step_in_its_run():
    same, other = HeavyWork(**vars(WORK)), HeavyWork(**{**vars(WORK), "run_id": "run-2"})
    assert jobs.submission_id(WORK) == jobs.submission_id(same) != jobs.submission_id(other)


class Server:
    """Answers in turn; an exception is raised."""

    def __init__(self, *statuses, submit=None):
        self.statuses, self.submit, self.calls = list(statuses), submit, []

    def get_job_status(self, job):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        return status

    def submit_job(self, **given):
        self.calls.append("submit")
        if self.submit:
            raise self.submit

    def delete_job(self, job):
        self.calls.append("delete")


UNKNOWN = RuntimeError("Request failed with status code 404: no such job.")


def run(server, *said):
    """Notes of a run; `said` are the results, in turn."""
    answers, notes = list(said), []
    cluster = JobsCluster("http://host:8265", server, sleep=lambda seconds: None)
    cluster.run(WORK, notes.append, lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    return notes


def test_a_job_is_submitted_once_and_waited_for():
    server = Server(UNKNOWN, "PENDING", "RUNNING", "RUNNING", "SUCCEEDED")
    notes = run(server, None, None, None, None, None, DONE)
    assert server.calls == ["submit"]
    assert [note.split(": ")[1] for note in notes] == ["pending", "running", "done"]


def test_the_job_of_an_earlier_attempt_is_adopted():
    server = Server("RUNNING", "SUCCEEDED")
    assert "adopted" in run(server, None, None, DONE)[0]
    assert server.calls == []


def test_a_job_that_ended_otherwise_is_replaced():
    server = Server("FAILED", "RUNNING", "SUCCEEDED")
    run(server, DIED, DIED, None, DONE)
    assert server.calls == ["delete", "submit"]


def test_a_second_launcher_that_was_first_is_joined():
    server = Server(UNKNOWN, "RUNNING", submit=RuntimeError("status code 500: Job with submission_id x already exists."))
    run(server, None, None, None, DONE)


def test_a_cluster_that_is_away_for_a_while_is_waited_for_and_one_that_stays_away_is_a_letter():
    run(Server(UNKNOWN, ConnectionError(), ConnectionError(), "RUNNING"), None, None, None, DONE)
    with pytest.raises(InternalError, match="does not answer for 300 s: ConnectionError"):
        run(Server(ConnectionError()), None)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_token_is_a_letter_at_once(code):
    with pytest.raises(ConfigError, match="refuses the token"):
        run(Server(RuntimeError(f"Request failed with status code {code}: no.")), None)

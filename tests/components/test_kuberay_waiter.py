"""The waiter, as a pure state machine: every row of its table, and for any history: it never ends early, and always ends."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from components.platform.kuberay.waiter import Limits, Look, Memory, State, step
from model.errors import ExitCode

LIMITS = Limits(working=3600, starting=600, queued=7200, grace=60, starts=3)


def seen(deployment, job="", **more):
    return Look(deployment, job, **more)


def play(looks, limits=LIMITS, every=10.0):
    """The turns of a history, up to its end."""
    memory, turns = Memory(), []
    for look in looks:
        turns.append(step(memory, look, every if turns else 0.0, limits))
        memory = turns[-1].memory
        if turns[-1].end:
            break
    return turns


RUNS = seen("Running", "RUNNING", started="1")
GOING = [
    ([seen("", suspended=True)], State.QUEUED),
    ([seen("Initializing", suspended=True)], State.QUEUED),
    ([seen("Suspended", suspended=True)], State.QUEUED),
    ([seen("")], State.STARTING),
    ([seen("Initializing")], State.STARTING),
    ([seen("Waiting")], State.STARTING),
    ([seen("Suspended", suspended=True), seen("Initializing")], State.STARTING),
    ([RUNS], State.RUNNING),
    ([seen("Running", "FAILED")], State.RUNNING),
    ([RUNS, seen("Retrying", "FAILED")], State.RETRYING),
    ([RUNS, seen("Suspending", "RUNNING", suspended=True)], State.PREEMPTED),
    ([RUNS, seen("Suspended", suspended=True)], State.PREEMPTED),
    ([seen("Initializing"), seen("Suspended", suspended=True)], State.PREEMPTED),
    ([RUNS, seen("Suspended", suspended=True), seen("Initializing"), RUNS], State.RUNNING),
    ([seen("Hibernating", "RUNNING")], State.UNKNOWN),
]
OVER = [
    (seen("Complete", "SUCCEEDED"), State.DONE, ExitCode.DONE),
    (seen("Complete", "STOPPED"), State.STOPPED, ExitCode.PREEMPTED),
    (seen("Complete", "FAILED"), State.FAILED, ExitCode.INTERNAL),
    (seen("Complete", ""), State.FAILED, ExitCode.INTERNAL),
    (seen("Failed", "FAILED", reason="AppFailed"), State.FAILED, ExitCode.INTERNAL),
    (seen("Failed", "SUCCEEDED", reason="SubmissionFailed"), State.FAILED, ExitCode.INTERNAL),
    (seen("Failed", "RUNNING", reason="SubmissionFailed"), State.FAILED, ExitCode.INTERNAL),
    (seen("Failed", "RUNNING", reason="DeadlineExceeded"), State.FAILED, ExitCode.REFUSED),
    (seen("Failed", "", reason="PreRunningDeadlineExceeded"), State.FAILED, ExitCode.INTERNAL),
    (seen("Failed", "RUNNING", reason="JobStatusCheckTimeoutExceeded"), State.FAILED, ExitCode.INTERNAL),
    (seen("ValidationFailed", reason="ValidationFailed"), State.FAILED, ExitCode.BAD_CONFIG),
    (seen(None), State.VANISHED, ExitCode.INTERNAL),
]


@pytest.mark.parametrize(("looks", "state"), GOING)
def test_a_job_that_goes_on_is_waited_for_in_the_right_state(looks, state):
    last = play(looks)[-1]
    assert last.end is None
    assert last.memory.state is state


@pytest.mark.parametrize(("look", "state", "code"), OVER)
def test_a_job_that_is_over_ends_with_its_state_and_code(look, state, code):
    end = play([RUNS, look])[-1].end
    assert end is not None
    assert (end.state, end.code) == (state, code)
    assert end.ask_result == (look.deployment != "ValidationFailed")
    assert not end.delete
    if code:
        assert end.message
        assert end.hint


def test_what_the_job_printed_is_not_passed_on():
    """Ray's message quotes the driver's last lines, which may quote a record; KubeRay's own messages are safe."""
    secret = "the patient's name"
    assert secret not in play([seen("Failed", "FAILED", reason="AppFailed", message=secret)])[-1].end.message
    assert "a quota" in play([seen("Failed", "", reason="SubmissionFailed", message="a quota")])[-1].end.message


def test_each_change_is_told_once_with_what_kueue_says():
    queued = seen("Suspended", suspended=True, waits_for="insufficient quota for nvidia.com/gpu")
    told = [
        turn.tell for turn in play([queued, queued, seen("Initializing"), RUNS, RUNS, seen("Suspended", suspended=True), RUNS])
    ]
    assert [bool(words) for words in told] == [True, False, True, True, False, True, True]
    assert "insufficient quota" in told[0]
    assert "preempted" in told[5]


def test_time_in_the_queue_is_not_counted_as_work():
    queued = [seen("Suspended", suspended=True)] * 600
    memory = play([*queued, RUNS, RUNS], every=10)[-1].memory
    assert (memory.queued, memory.working) == (6000, 10)


@pytest.mark.parametrize(
    ("look", "seconds", "code", "said"),
    [
        (seen("Suspended", suspended=True, waits_for="no room"), 7200, ExitCode.REFUSED, "no room"),
        (seen("Initializing"), 660, ExitCode.INTERNAL, "starting for 11 min"),
        (seen(""), 660, ExitCode.INTERNAL, "status ''"),
        (RUNS, 3660, ExitCode.REFUSED, "worked 1.0 h"),
        (seen("Hibernating"), 3660, ExitCode.REFUSED, "1.0 h are allowed"),
    ],
)
def test_a_job_past_its_limit_is_stuck_and_deleted(look, seconds, code, said):
    turns = play([look] * 1000)
    assert 10 * (len(turns) - 2) <= seconds < 10 * len(turns)
    end = turns[-1].end
    assert (end.state, end.code, end.delete) == (State.STUCK, code, True)
    assert said in end.message


def test_deadlines_that_begin_anew_after_each_eviction_are_counted_together():
    day = [RUNS] * 100 + [seen("Suspended", suspended=True)]
    turns = play(day * 10)
    assert turns[-1].end.code == ExitCode.REFUSED
    assert turns[-1].memory.working == pytest.approx(3670)


def test_a_job_that_starts_for_ever_and_is_evicted_each_time_is_given_up():
    """Each eviction sets the time of the start back, so only the whole time ends this one."""
    turns = play(([seen("Initializing")] * 50 + [seen("Suspended", suspended=True)]) * 100)
    assert turns[-1].end.state is State.STUCK
    assert turns[-1].memory.total == pytest.approx(LIMITS.total, abs=10)


def test_a_job_whose_head_is_lost_again_and_again_is_given_up_but_evictions_are_free():
    """In HTTPMode KubeRay submits again after each loss of the head, without counting."""
    starts = [seen("Running", "RUNNING", started=str(n)) for n in range(4)]
    assert play(starts[:3])[-1].end is None
    assert "began the job 4 times" in play(starts)[-1].end.message
    evicted = [look for start in starts * 5 for look in (start, seen("Suspended", suspended=True))]
    assert play(evicted)[-1].end is None


def test_a_clock_that_is_set_back_ends_nothing():
    turn = step(Memory(State.RUNNING, working=100.0), RUNS, -3600.0, LIMITS)
    assert turn.end is None
    assert turn.memory.working == 100.0


STATUSES = st.sampled_from(["", "Initializing", "Waiting", "Running", "Retrying", "Suspending", "Suspended", "Hibernating"])
JOBS = st.sampled_from(["", "PENDING", "RUNNING", "FAILED", "SUCCEEDED", "STOPPED"])
LOOKS = st.builds(Look, STATUSES, JOBS, st.booleans(), started=st.sampled_from(["", "1", "2", "3"]))
HISTORY = st.lists(LOOKS, min_size=1, max_size=30)
SETTINGS = hypothesis.settings(max_examples=200, deadline=None)


@hypothesis.given(HISTORY, st.floats(0, 19))
@SETTINGS
def test_it_never_ends_early(looks, every):
    """No history of a job that goes on, within all limits, is an end; whatever jobStatus says meanwhile."""
    limits = Limits(working=600, starting=600, queued=600, grace=0, starts=31)
    assert all(turn.end is None for turn in play(looks, limits, every))


@hypothesis.given(HISTORY, st.sampled_from(OVER))
@SETTINGS
def test_it_ends_at_once_when_the_job_does_whatever_came_before(looks, over):
    look, state, code = over
    limits = Limits(working=1e9, starting=1e9, queued=1e9, starts=99)
    end = play([*looks, look], limits)[-1].end
    assert (end.state, end.code) == (state, code)


@hypothesis.given(HISTORY, st.floats(1, 60))
@SETTINGS
def test_it_always_ends(looks, every):
    """A job that never ends, in any cycle of states, is given up within the total of its limits."""
    limits = Limits(working=300, starting=60, queued=300, grace=6, starts=3)
    most = int(limits.total / every) + 3
    turns = play((looks[n % len(looks)] for n in range(most)), limits, every)
    assert turns[-1].end is not None
    assert turns[-1].end.state is State.STUCK
    assert turns[-1].end.delete


@hypothesis.given(
    st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["Complete", "Failed"])), st.one_of(st.text(max_size=20), JOBS)
)
@SETTINGS
def test_only_complete_and_succeeded_is_done(deployment, job):
    end = play([Look(deployment, job)])[-1].end
    assert (end is not None and end.state is State.DONE) == (deployment == "Complete" and job == "SUCCEEDED")

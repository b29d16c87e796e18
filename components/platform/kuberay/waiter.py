"""Waiting for a RayJob: a pure state machine. A look at the job goes in; what to tell, and whether it is over, comes out.

1. The client looks (`Look`), measures the time since the last look, and calls `step` with what was remembered (`Memory`).
2. `step` names the state of the job (`State`) from jobDeploymentStatus, jobStatus and spec.suspend, adds the time to the account of
   that state, and compares the accounts with the limits.
3. It tells the user when the state or its reason changed, and only then.
4. An `End` says the exit code and the letter, whether the result in the store is asked first (a job whose submitter died may have
   finished), and whether the job must be deleted, because it would go on holding machines.

What each status means: KubeRay 1.7's rayjob_controller.go. `Retrying` is no end though jobStatus is FAILED then; STOPPED ends as
`Complete`; `ValidationFailed` is an end though the controller does not count it among its own; KubeRay's deadlines begin anew after
each eviction, so the time is counted here as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from model.errors import ExitCode


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """Kueue has not admitted it yet."""
    STARTING = "starting"
    """Admitted; machines, images and Ray are on their way."""
    RUNNING = "running"
    """Ray runs it."""
    RETRYING = "retrying"
    """KubeRay takes the failed cluster away and makes another."""
    PREEMPTED = "preempted"
    """It ran, and Kueue took its machines; it waits for others."""
    UNKNOWN = "unknown"
    """A status of a KubeRay newer than this code."""
    DONE = "done"
    """Complete and SUCCEEDED."""
    FAILED = "failed"
    """Over, with a reason."""
    STOPPED = "stopped"
    """Someone stopped the Ray job."""
    VANISHED = "vanished"
    """Someone deleted it."""
    STUCK = "stuck"
    """It is past a limit and nobody ended it."""


@dataclass(frozen=True)
class Look:
    """What the API server says about the job at one moment."""

    deployment: str | None
    """status.jobDeploymentStatus; None if there is no such job."""
    job: str = ""
    """status.jobStatus."""
    suspended: bool = False
    """spec.suspend."""
    reason: str = ""
    """status.reason."""
    message: str = ""
    """status.message."""
    started: str = ""
    """status.rayJobInfo.startTime: another one says that Ray began the job again."""
    waits_for: str = ""
    """Why Kueue has not admitted it, from its Workload."""


@dataclass(frozen=True)
class Limits:
    """Seconds that a job may spend, over all its restarts."""

    working: float
    starting: float
    queued: float
    grace: float = 600.0
    """What KubeRay gets to act on its own deadlines before we do."""
    starts: int = 3
    """How often Ray may begin the job without an eviction in between."""

    @property
    def total(self) -> float:
        """All of it, with room for some restarts; KubeRay's own deadlines begin anew after each eviction."""
        return self.working + self.queued + self.starts * (self.starting + self.grace)


@dataclass(frozen=True)
class Memory:
    """What is remembered from look to look."""

    state: State = State.QUEUED
    told: str = ""
    queued: float = 0.0
    starting: float = 0.0
    """Since it was last admitted."""
    working: float = 0.0
    total: float = 0.0
    admitted: bool = False
    """Whether it ever left the queue."""
    started: str = ""
    starts: int = 0
    """Starts since the last eviction."""


@dataclass(frozen=True)
class End:
    """The job is over, or given up."""

    state: State
    code: ExitCode
    message: str
    hint: str
    ask_result: bool = True
    """Whether a result in the store is believed more than this."""
    delete: bool = False


@dataclass(frozen=True)
class Turn:
    """What one look leads to."""

    memory: Memory
    tell: str = ""
    end: End | None = None


WAITING = (State.QUEUED, State.PREEMPTED)
STARTING = (State.STARTING, State.RETRYING)
STATES = {
    "": State.STARTING,
    "Initializing": State.STARTING,
    "Waiting": State.STARTING,
    "Running": State.RUNNING,
    "Retrying": State.RETRYING,
}
SUSPENDED = ("Suspending", "Suspended")
NO_TIME = ("DeadlineExceeded",)
INFRASTRUCTURE = (
    "machines, images or the operator; the job's pods and events say more (kubectl describe rayjob), the next attempt goes on"
)


def step(memory: Memory, look: Look, elapsed: float, limits: Limits) -> Turn:
    """One look at the job.

    Args:
        memory: What the turn before left; `Memory()` at first.
        look: What is seen now.
        elapsed: Seconds since the look before; negative ones (a clock set back) count as none.
        limits: How long it may go on.
    """
    counted = _count(memory, max(0.0, elapsed))
    if end := _over(look):
        return Turn(replace(counted, state=end.state), end=end)
    state = _state(counted, look)
    now = _remember(counted, state, look)
    if end := _past(now, look, limits):
        return Turn(replace(now, state=end.state), end=end)
    words = _words(now, look)
    return Turn(replace(now, told=words), tell=words if words != memory.told else "")


def _state(memory: Memory, look: Look) -> State:
    """The state of a job that is not over."""
    waits = State.PREEMPTED if memory.admitted else State.QUEUED
    status = look.deployment or ""
    if status in SUSPENDED or (look.suspended and status in ("", "Initializing")):
        return waits
    return STATES.get(status, State.UNKNOWN)


def _over(look: Look) -> End | None:
    """The end that the status itself says."""
    match look.deployment, look.job:
        case None, _:
            return End(
                State.VANISHED,
                ExitCode.INTERNAL,
                "the RayJob is gone: someone deleted it before it ended",
                "see who deletes RayJobs here; running again goes on from the last checkpoint",
            )
        case "Complete", "SUCCEEDED":
            return End(State.DONE, ExitCode.DONE, "", "")
        case "Complete", "STOPPED":
            return End(
                State.STOPPED, ExitCode.PREEMPTED, "the Ray job was stopped", "running again goes on from the last checkpoint"
            )
        case "Complete" | "Failed", _:
            return _failed(look)
        case "ValidationFailed", _:
            return End(
                State.FAILED,
                ExitCode.BAD_CONFIG,
                f"KubeRay refuses the RayJob: {_said(look)}",
                "a newer KubeRay may have other rules; see infra/README.md for the versions it was checked with",
                ask_result=False,
            )
    return None


def _failed(look: Look) -> End:
    if look.reason in NO_TIME:
        return End(
            State.FAILED,
            ExitCode.REFUSED,
            f"the RayJob used up its time: {_said(look)}",
            "raise resources.deadline_hours; it goes on from the last checkpoint",
        )
    return End(State.FAILED, ExitCode.INTERNAL, f"the RayJob failed: {_said(look)}", f"likely {INFRASTRUCTURE}")


def _said(look: Look) -> str:
    """KubeRay's reason; its message quotes what the job printed, which may quote a record, so only KubeRay's own messages are passed on."""
    own = look.message if look.deployment == "ValidationFailed" or look.reason not in ("", "AppFailed") else ""
    words = " ".join(part for part in (look.reason or f"{look.deployment} with jobStatus {look.job or 'empty'}", own) if part)
    return words[:300]


def _count(memory: Memory, elapsed: float) -> Memory:
    """The time since the last look goes to the state that was seen then."""
    memory = replace(memory, total=memory.total + elapsed)
    if memory.state in WAITING:
        return replace(memory, queued=memory.queued + elapsed)
    if memory.state in STARTING:
        return replace(memory, starting=memory.starting + elapsed)
    return replace(memory, working=memory.working + elapsed)


def _remember(memory: Memory, state: State, look: Look) -> Memory:
    evicted = state in WAITING
    another = bool(look.started and memory.started) and look.started != memory.started
    began = state is State.RUNNING and (memory.state is not State.RUNNING or another)
    return replace(
        memory,
        state=state,
        admitted=memory.admitted
        or state in (State.RUNNING, State.RETRYING)
        or (state is State.STARTING and look.deployment != ""),
        starting=0.0 if evicted or state is State.RUNNING else memory.starting,
        started=look.started or memory.started,
        starts=0 if evicted else memory.starts + began,
    )


def _past(memory: Memory, look: Look, limits: Limits) -> End | None:
    """The end that we make, where nobody else does."""

    def stuck(code: ExitCode, message: str, hint: str) -> End:
        return End(State.STUCK, code, message, hint, delete=True)

    if memory.state in WAITING and memory.queued > limits.queued:
        why = f": {look.waits_for}" if look.waits_for else ""
        return stuck(
            ExitCode.REFUSED,
            f"the RayJob waited {_hours(memory.queued)} in queues, {_hours(limits.queued)} are allowed{why}",
            "raise resources.queue_hours, or take a pool with more room",
        )
    if memory.starting > limits.starting + limits.grace:
        return stuck(
            ExitCode.INTERNAL,
            f"the RayJob has been {memory.state} for {_hours(memory.starting)} (status {look.deployment!r}), and KubeRay did not end it",
            f"likely {INFRASTRUCTURE}",
        )
    if memory.working > limits.working + limits.grace or memory.total > limits.total:
        return stuck(
            ExitCode.REFUSED,
            f"the RayJob worked {_hours(memory.working)} of {_hours(memory.total)} over all restarts, {_hours(limits.working)} are "
            "allowed",
            "raise resources.deadline_hours; it goes on from the last checkpoint",
        )
    if memory.starts > limits.starts:
        return stuck(
            ExitCode.INTERNAL,
            f"Ray began the job {memory.starts} times without an eviction, {limits.starts} are allowed: its head was lost each time",
            f"likely {INFRASTRUCTURE}; see also site.head_memory_gib",
        )
    return None


def _words(memory: Memory, look: Look) -> str:
    """What the user is told of a state; the same words are told once."""
    why = f": {look.waits_for}" if look.waits_for else ""
    match memory.state:
        case State.QUEUED:
            return f"queued by Kueue{why}; no deadline runs"
        case State.PREEMPTED:
            return f"preempted: Kueue took its machines{why}; it waits for others and goes on from the last checkpoint"
        case State.STARTING:
            return "starting: machines, images, Ray"
        case State.RETRYING:
            return "retrying: KubeRay takes the failed cluster away and makes another"
        case State.RUNNING:
            return f"running (start {memory.starts})" if memory.starts > 1 else "running"
    return f"status {(look.deployment or '')[:60]!r} is of a newer KubeRay; waiting on, at most to the deadline"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"

"""What to do about a RayJob that is there already: pure.

An attempt of a step finds the RayJob of the attempt before by its name. It is waited for if it still runs, believed if it says
something that a second try cannot change, and replaced by a new one if it failed otherwise and tries are left.

Tries are counted over all layers, on the RayJob itself: `tries-before` is what others used, `tries-allowed` what this one may use with
Ray's restarts. A job that ran and left no result is counted with all it was allowed; one that never ran, with one; a stop from outside
is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from components.platform.heavy import Result
from components.platform.kuberay.manifest import ALLOWED, BEFORE, SPEC_DIGEST
from components.platform.kuberay.waiter import End, Limits, Look, Memory, State, step
from components.platform.retries import MOST_ATTEMPTS
from model.errors import NEVER_RETRIED, ExitCode, RefusedError

FOREVER = Limits(working=float("inf"), starting=float("inf"), queued=float("inf"))


class Way(StrEnum):
    """What to do about the job that is there."""

    ADOPT = "adopt"
    """Wait for it; if it is over, its end is ours."""
    REPLACE = "replace"
    """Delete it and start another."""
    LET_GO = "let go"
    """It is being deleted: wait until it is gone, then start another."""


@dataclass(frozen=True)
class Verdict:
    """The way, and how many tries were used before the job that comes next."""

    way: Way
    before: int = 0


def look_of(job: dict[str, Any] | None, waits_for: str = "") -> Look:
    """What the waiter sees of a RayJob as the API server gives it; None is a job that is not there."""
    if job is None:
        return Look(deployment=None)
    status = job.get("status") or {}
    return Look(
        deployment=status.get("jobDeploymentStatus", ""),
        job=status.get("jobStatus", ""),
        suspended=bool(job["spec"].get("suspend")),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        started=(status.get("rayJobInfo") or {}).get("startTime", ""),
        waits_for=waits_for,
    )


def decide(job: dict[str, Any], digest: str, result: Result | None) -> Verdict:
    """What to do about `job`, which has the name of the job that we would start.

    Args:
        job: As the API server gives it.
        digest: Spec digest of the job that we would start.
        result: What stands in the store.

    Raises:
        RefusedError: It is another job, or all tries are used.
    """
    metadata = job["metadata"]
    theirs = metadata.get("labels", {}).get(SPEC_DIGEST, "none")
    if theirs != digest:
        raise RefusedError(
            f"there is a RayJob {metadata['name']} of another spec: its digest is {theirs[:12]}, ours {digest[:12]}",
            "look who made it; delete it if nobody needs it, or give the run another id",
        )
    before, going = _number(metadata, BEFORE, 0), metadata.get("deletionTimestamp")
    end = step(Memory(), look_of(job), 0.0, FOREVER).end
    if end is None or end.state is State.DONE or end.code in NEVER_RETRIED or _final(result):
        return Verdict(Way.LET_GO if going else Way.ADOPT, before)
    used = before + _tries(job, end, result)
    if used >= MOST_ATTEMPTS:
        raise RefusedError(
            f"the RayJob {metadata['name']} failed; the step was tried {used} times over all layers, {MOST_ATTEMPTS} are allowed",
            "see what its pods died of; a new run counts anew and goes on from the last checkpoint",
        )
    return Verdict(Way.LET_GO if going else Way.REPLACE, used)


def _final(result: Result | None) -> bool:
    return result is not None and (result.exit_code == ExitCode.DONE or result.exit_code in NEVER_RETRIED)


def _tries(job: dict[str, Any], end: End, result: Result | None) -> int:
    if end.state is State.STOPPED or (result is not None and result.exit_code == ExitCode.PREEMPTED):
        return 0
    if result is not None:
        return max(1, result.tries)
    ran = bool(look_of(job).started) or look_of(job).job not in ("", "PENDING")
    return _number(job["metadata"], ALLOWED, 1) if ran else 1


def _number(metadata: dict[str, Any], name: str, default: int) -> int:
    """An annotation of ours; who edits it away gets the default."""
    text = str((metadata.get("annotations") or {}).get(name, default))
    return int(text) if text.isdigit() else default

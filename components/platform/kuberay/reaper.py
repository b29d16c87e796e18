"""Which RayJobs nobody waits for any more: pure. A CronJob and `biovlm reap` delete them.

Terminating a pipeline run does not reach the RayJobs that its steps started. A RayJob says in an annotation which run it belongs to; who
asks knows the states of runs.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from components.platform.kuberay.manifest import RUN_ID

UNKNOWN_HOURS = 24.0
"""How old the job of a run that nobody knows must be: a run may appear at the server later than its job."""


class RunState(StrEnum):
    """What is known of a pipeline run."""

    GOING = "going"
    OVER = "over"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Leftover:
    """A RayJob to delete, and why."""

    job: dict[str, Any]
    why: str


def run_of(job: dict[str, Any]) -> str:
    """The run that a RayJob of ours belongs to; empty if it does not say."""
    return str((job["metadata"].get("annotations") or {}).get(RUN_ID, ""))


def leftovers(jobs: Iterable[dict[str, Any]], runs: Mapping[str, RunState], now: datetime.datetime) -> list[Leftover]:
    """The jobs to delete.

    Args:
        jobs: RayJobs of ours.
        runs: States of their runs; one that is not in it is unknown.
        now: With a time zone.
    """
    found = []
    for job in jobs:
        run, state = run_of(job), runs.get(run_of(job), RunState.UNKNOWN)
        if job["metadata"].get("deletionTimestamp") or state is RunState.GOING:
            continue
        made = datetime.datetime.fromisoformat(job["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
        hours = (now - made).total_seconds() / 3600
        if state is RunState.OVER:
            found.append(Leftover(job, f"its run {run} is over"))
        elif hours > UNKNOWN_HOURS:
            found.append(Leftover(job, f"it is {hours:.0f} hours old, and nobody knows its run {run or '(none)'}"))
    return found

"""End the Ray jobs of runs that are over: stopping a run does not reach what its steps started.

1. `stop` deletes the jobs of one run, after KFP was told to terminate it.
2. `reap` asks for the `state` of each run that has a job, and deletes the jobs of those that are over. Which ones is decided by
   `components.platform.kuberay.reaper`, which does not touch anything.

Only ids of KFP's own form are asked about: the jobs of a run that was started elsewhere are nobody's leftovers here. A server that does not
answer ends the command: what is unknown is not deleted.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from components.platform.kuberay.reaper import Leftover, RunState, leftovers, run_of
from model.errors import MissingInputError
from pipelines.cluster import AwayError, Server
from pipelines.runs import OVER

OURS = "app.kubernetes.io/managed-by=biovlm"


class Jobs(Protocol):
    """RayJobs of one namespace (components.platform.kuberay.client.Cluster)."""

    def jobs(self, selector: str) -> list[dict[str, Any]]:
        """Those with these labels."""

    def delete(self, job: dict[str, Any]) -> None:
        """Delete one."""


def cluster_jobs(namespace: str) -> Jobs:
    """The RayJobs of the cluster that this process can reach."""
    from components.platform.kuberay.client import Cluster

    return Cluster(namespace)


def stop(jobs: Jobs, run_id: str) -> list[str]:
    """Delete all Ray jobs of a run; their names."""
    mine = [job for job in jobs.jobs(OURS) if run_of(job) == run_id]
    return _delete(jobs, mine)


def reap(jobs: Jobs, state_of: Callable[[str], RunState]) -> list[Leftover]:
    """Delete the Ray jobs whose run is over; what was deleted, and why.

    Args:
        jobs: Of the cluster.
        state_of: What is known of a run, such as `state` of a server.
    """
    ours = [job for job in jobs.jobs(OURS) if _is_kfps(run_of(job))]
    states = {run: state_of(run) for run in {run_of(job) for job in ours}}
    found = leftovers(ours, states, datetime.datetime.now(datetime.UTC))
    _delete(jobs, [leftover.job for leftover in found])
    return found


def state(server: Server, run_id: str) -> RunState:
    """What KFP says of a run. AwayError: it does not answer, which says nothing of the run."""
    try:
        found = server.run(run_id)
    except AwayError:
        raise
    except MissingInputError:
        return RunState.UNKNOWN
    return RunState.OVER if found.state in OVER or found.state == "CANCELING" else RunState.GOING


def _is_kfps(run_id: str) -> bool:
    try:
        return str(uuid.UUID(run_id)) == run_id
    except ValueError:
        return False


def _delete(jobs: Jobs, found: list[dict[str, Any]]) -> list[str]:
    for job in found:
        jobs.delete(job)
    return [str(job["metadata"]["name"]) for job in found]

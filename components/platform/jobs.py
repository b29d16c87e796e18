"""Heavy work on a Ray cluster that is there already, through its Jobs API.

1. The job's id is made of the run and the step's key: an attempt finds the job that an earlier one started, and adopts it.
2. `step` is the state machine, pure: from what the cluster and the result say to what is done about it.
3. The client asks every few seconds. A cluster that does not answer is asked again for `LOST_SECONDS`; one that refuses the token ends
   the step at once.
4. Done is what left a result of 0. On any other end the result is asked first, then the job's status; logs are never read.

A launcher that dies leaves the job to the next attempt. The token is Ray's: RAY_AUTH_TOKEN, or a file at RAY_AUTH_TOKEN_PATH.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from components.platform.heavy import ENTRYPOINT, HeavyWork, Result
from components.platform.jobs_client import JobsClient
from model.errors import NEVER_RETRIED, BiovlmError, ConfigError, ExitCode, InternalError, PreemptedError, kind_of

POLL_SECONDS = 2.0
LOST_SECONDS = 300.0
WORKS = frozenset({"PENDING", "RUNNING"})
OVER = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
REFUSES = re.compile(r"status code 40[13]\b")
T = TypeVar("T")


class Act(StrEnum):
    """What is done about a job."""

    SUBMIT = "submit"
    """There is none: start it."""
    REPLACE = "replace"
    """Take the one that ended away, and start another."""
    WAIT = "wait"
    """Look again later."""
    DONE = "done"
    """Its result is 0."""
    FAIL = "fail"
    """Raise the letter of its end."""


@dataclass(frozen=True)
class Look:
    """What there is to see of a job."""

    status: str
    """JobStatus of Ray; empty if the cluster does not know the job."""
    result: Result | None
    ours: bool
    """This attempt started it, or saw it at work."""
    before: str = ""
    """`Result.job` of the result that stood there when this attempt began."""


def step(look: Look) -> Act:
    """The state machine."""
    fresh = look.result is not None and (not look.ours or look.result.job != look.before)
    if look.result is not None and look.result.exit_code == ExitCode.DONE:
        return Act.DONE
    if look.status in WORKS:
        return Act.WAIT
    if look.ours:
        known = fresh or look.status in OVER or not look.status
        return Act.FAIL if known else Act.WAIT  # a status that this version does not know is no end
    if look.result is not None and look.result.exit_code in NEVER_RETRIED:
        return Act.FAIL
    return Act.REPLACE if look.status in OVER else Act.SUBMIT


def letter(look: Look, job: str) -> BiovlmError:
    """What a job that is not done ended with: its result, else its status."""
    said = look.result
    if said is not None and (not look.ours or said.job != look.before):
        return kind_of(said.exit_code)(said.message or f"the job {job} failed", said.hint)
    if look.status == "STOPPED":
        return PreemptedError(f"the job {job} was stopped", "the same step goes on from the last checkpoint")
    if not look.status:
        return InternalError(
            f"the job {job} vanished: the cluster does not know it", "its head was started anew; the same step starts another job"
        )
    return InternalError(
        f"the job {job} ended as {look.status} and left no result",
        f"its driver died, perhaps for its memory: `ray job logs {job}` says more; the same step starts another job",
    )


def submission_id(work: HeavyWork) -> str:
    """The one id of this work in its run."""
    return f"biovlm-{work.step}-{hashlib.sha256(f'{work.run_id}{chr(10)}{work.key}'.encode()).hexdigest()[:20]}"


class JobsCluster:
    """The back end for one cluster.

    Args:
        address: `http://HOST:8265`.
        client: Of the Jobs API; made from the address when it is needed.
        sleep: Waits for that many seconds.
    """

    def __init__(self, address: str, client: Any = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._address, self._made, self._sleep = address, client, sleep

    def run(self, work: HeavyWork, tell: Callable[[str], None], result: Callable[[], Result | None]) -> None:
        """As `components.platform.heavy.Backend`."""
        job, said = submission_id(work), result()
        before, ours, last = said.job if said else "", False, ""
        while True:
            look = Look(self._status(job), result(), ours, before)
            act = step(look)
            if act is Act.DONE:
                tell(f"job {job}: done")
                return
            if act is Act.FAIL:
                raise letter(look, job)
            if act is Act.WAIT:
                if look.status != last:
                    tell(f"job {job}: {look.status.lower()}{'' if ours else ', adopted from an earlier attempt'}")
                ours, last = True, look.status
                self._sleep(POLL_SECONDS)
                continue
            if act is Act.REPLACE:
                self._asked(lambda client: client.delete_job(job))
            self._submit(work, job)
            ours = True

    def _submit(self, work: HeavyWork, job: str) -> None:
        metadata = {"biovlm_key": work.key, "biovlm_run": work.run_id, "biovlm_recipe": work.recipe, "biovlm_step": work.step}
        command = shlex.join((*ENTRYPOINT, work.spec_uri))

        def submit(client: Any) -> None:
            try:
                client.submit_job(entrypoint=command, submission_id=job, metadata=metadata)
            except RuntimeError as error:
                if "already" not in str(error):
                    raise  # else another launcher was first, or the answer to our own request was lost: it is adopted

        self._asked(submit)

    def _status(self, job: str) -> str:
        """Empty if the cluster does not know the job."""

        def ask(client: Any) -> str:
            try:
                return str(client.get_job_status(job))
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return ""
                raise

        return self._asked(ask)

    def _asked(self, question: Callable[[Any], T]) -> T:
        """The cluster's answer. ConfigError: it refuses the token. InternalError: it is lost."""
        waited = 0.0
        while True:
            try:
                return question(self._client())
            except Exception as error:  # noqa: BLE001 (Ray's client raises what requests and its server say, under many names)
                if type(error).__name__ == "AuthenticationError" or REFUSES.search(str(error)):
                    raise ConfigError(
                        f"the cluster at {self._address} refuses the token: {type(error).__name__}",
                        "RAY_AUTH_TOKEN, or the file at RAY_AUTH_TOKEN_PATH, must hold the token of the cluster",
                    ) from None
                if waited >= LOST_SECONDS:
                    raise InternalError(
                        f"the cluster at {self._address} does not answer for {LOST_SECONDS:.0f} s: {type(error).__name__}",
                        "the job, if it still works, is adopted when the step is tried again",
                    ) from None
            self._sleep(POLL_SECONDS)
            waited += POLL_SECONDS

    def _client(self) -> Any:
        if self._made is None:
            self._made = JobsClient(self._address)
        return self._made

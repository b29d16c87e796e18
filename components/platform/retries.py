"""How often one step is tried, over all layers together.

The pipeline, the cluster's job and Ray's worker group can each start a step again, and their bounds multiply: 3 x 3 x 3 attempts at
something that cannot succeed. So there is one bound for all of them, and each layer's own is cut to what is left of it.

1. `again` is the decision: what cannot change is tried once, a stop from outside is free, all else counts up to `MOST_ATTEMPTS`.
2. `Attempts` is the count: a file beside the step's scratch folder, or on the desk of heavy work (desk.py), one line for each begin and
   for each stop from outside. It counts for one run of the pipeline; who starts a new run has decided to try again. A RayJob that never
   came to a begin is counted on the job itself (kuberay/adopting.py), against the same bound.
3. A training step gives Ray no more restarts than `forgiven` says, and begins none when the attempts are used up (RefusedError,
   exit 77, which nobody retries).
"""

from __future__ import annotations

import json
from pathlib import Path

from components.platform.events import append_line
from model.errors import NEVER_RETRIED, ExitCode, RefusedError

MOST_ATTEMPTS = 3
"""How often a step of a run is tried: its pipeline, the cluster's jobs and Ray's own restarts together."""


def again(code: int | None, attempts: int) -> bool:
    """Whether a step may be started again.

    Args:
        code: What it ended with; None if its process vanished.
        attempts: How many have counted so far, this one included.
    """
    if code == ExitCode.DONE or code in NEVER_RETRIED:
        return False
    return code == ExitCode.PREEMPTED or attempts < MOST_ATTEMPTS


def forgiven(max_failures: int, attempts: int) -> int:
    """How many failures the layer that now begins may forgive, of the `max_failures` it wants to.

    Args:
        max_failures: As the recipe says.
        attempts: How many have counted before.
    """
    return max(0, min(max_failures, MOST_ATTEMPTS - attempts - 1))


class Attempts:
    """The count of one step in one run.

    Args:
        path: The file; made when the first attempt begins.
        run_id: Of the pipeline run.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self._path, self._run_id = path, run_id

    @property
    def counted(self) -> int:
        """Attempts of this run so far, without those that were stopped from outside."""
        if not self._path.is_file():
            return 0
        lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        said = [line["what"] for line in lines if line["run"] == self._run_id]
        return said.count("begun") - said.count("stopped")

    def check(self) -> None:
        """RefusedError if none is left."""
        if self.counted >= MOST_ATTEMPTS:
            raise RefusedError(
                f"the step was tried {self.counted} times in this run, {MOST_ATTEMPTS} are allowed over all layers",
                "look at its log for what it died of; a new run begins to count anew and goes on from the last checkpoint",
            )

    def begin(self) -> None:
        """Count one more. Errors as `check`; CannotWriteError."""
        self.check()
        self._append("begun")

    def stopped(self) -> None:
        """The attempt was stopped from outside: it does not count."""
        self._append("stopped")

    def _append(self, what: str) -> None:
        append_line(self._path, json.dumps({"run": self._run_id, "what": what}))

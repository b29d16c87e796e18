"""What a back end is given: one piece of heavy work for a Ray cluster, the same for all of them.

1. A step makes a `HeavyWork` and hands it to its launcher (components/platform/launcher.py).
2. A back end that runs it elsewhere starts `ENTRYPOINT` with the address of its spec, a JSON file in the store.
3. The entrypoint publishes what it made and writes the result last. A launcher trusts the result and the job's status, never logs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from model.config import Resources

ENTRYPOINT = ("python", "-m", "components.platform.remote")
"""The command in the train image; the address of a spec follows."""


@dataclass(frozen=True)
class HeavyWork:
    """One step's work for Ray workers."""

    key: str
    """The step's key, 64 hex digits: names the job, so that an attempt finds the job of the one before."""
    step: str
    """Name of the step in its pipeline, for labels and letters."""
    run_id: str
    """The pipeline run that it belongs to."""
    recipe: str
    """Name of the recipe, for labels of cost."""
    spec_uri: str
    """What the entrypoint reads."""
    result_uri: str
    """What the entrypoint writes last: exit code, letter if there is one, digest of what was made."""
    resources: Resources
    """Number and size of the workers, and the pool that they are taken from."""
    evaluates: bool = False
    """Evaluation, which may take slices of a GPU (MIG)."""


@dataclass(frozen=True)
class Result:
    """What the entrypoint wrote last."""

    exit_code: int
    """0 if the work is done and published."""
    message: str = ""
    """The letter, if there is one."""
    hint: str = ""
    """The letter's way out."""
    tries: int = 1
    """How often the workers were started."""
    digest: str = ""
    """Of what was made."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that made it."""
    job: str = ""
    """Drawn anew by each entrypoint: tells its result from that of an earlier one."""
    work_seconds: float | None = None
    """How long the entrypoint worked, from its first to its last line."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Machine, lock and Ray job of the entrypoint (components/platform/origin.py)."""


class Backend(Protocol):
    """Where heavy work runs that does not run in this process."""

    def run(self, work: HeavyWork, tell: Callable[[str], None], result: Callable[[], Result | None]) -> None:
        """Start the work, or adopt the job that an earlier attempt started, and wait for its end.

        Args:
            work: What.
            tell: Is given each change of state, in words.
            result: Reads what the entrypoint wrote last; None if there is nothing.

        Raises:
            BiovlmError: The letter of its end, if that is not a result of 0.
        """

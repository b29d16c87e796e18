"""Heavy work as a step describes it, and as a worker on some machine gets it.

1. A step makes a `Task`: which function every worker runs, with what values, and which artifacts of the store it reads. It names no
   path, so it means the same on every machine.
2. Whoever runs it brings the artifacts (`fetched`), chooses `Places` on its machine, and makes of both the `local_job` that the
   function takes: JSON values, with paths of this machine.

The keys of a local job: those of `Task.job`; a mapping of name to folder for each group of artifacts (`sets`, `bases`, `parents`,
`subjects`); `scratch`, `stop`, `final`, `events`, `attempts`, `feature_cache`, `checkpoints`, `home`, `shared_store`; `key`, `run_id`,
`attempt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from components.platform.settings import Settings
from components.platform.store import Source, Store
from model.config import Resources

STOP_FILE = "stop"
GROUPS = ("sets", "bases", "parents", "subjects")


class Task(BaseModel):
    """Heavy work without a place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    function: str = Field(description="Dotted name of what every worker runs.")
    job: dict[str, Any] = Field(description="What it is told, as JSON values.")
    artifacts: dict[str, dict[str, Source]] = Field(description="Group -> name -> artifact that every worker reads.")
    resources: Resources
    kind: str = Field(description="Kind of step.")
    key: str
    step: str = Field(description="Name of the step.")
    run_id: str
    attempt: int = Field(description="Of the step, in its run.")


@dataclass(frozen=True)
class Places:
    """Where a machine keeps what belongs to one task."""

    scratch: Path
    """What must survive a restart of the workers."""
    final: Path
    """Where the artifact appears."""
    events: Path
    """The log that the workers append to."""
    attempts: Path
    """How often it was tried (components/platform/retries.py)."""
    checkpoints: str
    """Bucket for checkpoints; empty keeps them in `scratch`."""


def fetched(task: Task, store: Store) -> dict[str, dict[str, str]]:
    """Group -> name -> folder on this machine, verified. Errors as `Store.fetch`."""
    return {
        group: {name: str(store.fetch(source.uri, source.digest)) for name, source in task.artifacts.get(group, {}).items()}
        for group in GROUPS
    }


def local_job(task: Task, folders: dict[str, dict[str, str]], places: Places, settings: Settings) -> dict[str, Any]:
    """What `task.function` takes on this machine."""
    return {
        **task.job,
        **folders,
        "scratch": str(places.scratch),
        "stop": str(places.scratch / STOP_FILE),
        "final": str(places.final),
        "events": str(places.events),
        "attempts": str(places.attempts),
        "feature_cache": {"folder": str(settings.feature_cache), "limit_bytes": settings.feature_cache_bytes},
        "checkpoints": places.checkpoints,
        "home": str(settings.home),
        "shared_store": settings.shared_store,
        "key": task.key,
        "run_id": task.run_id,
        "attempt": task.attempt,
    }

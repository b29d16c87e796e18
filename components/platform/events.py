"""The event log of a run: one JSON object a line, appended by every process of the run.

1. A process opens `EventLog(path, step)` and calls `write(type, ...)`. Each line is one `write` of a file opened with O_APPEND,
   so lines of several processes never mix.
2. The command, and the mirror to MLflow, follow the file with `Follower.new()`: whole lines only, unknown ones are passed over.

Events carry ids, counts and numbers: never text or images of records.
"""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import ExitCode
from model.manifest import cannot_write


class EventType(StrEnum):
    """What an event says."""

    RUN_STARTED = "run_started"
    """A pipeline run began; facts: recipe, recipe_digest, steps."""
    STEP_STARTED = "step_started"
    """A step's process began to look for its result, and then to make it."""
    PROGRESS = "progress"
    """`done` of `total` `unit`s, and the metrics there."""
    RESUMED = "resumed"
    """A stage goes on from its checkpoint at `done`."""
    REUSED = "reused"
    """The step's result was in the store."""
    NOTE = "note"
    """A sentence for the reader; nothing failed."""
    FINISHED = "finished"
    """The step's result is in the store; facts: key, folder, figures."""
    FAILED = "failed"
    """The step ended with `exit_code`, `message` and `hint`."""
    RUN_FINISHED = "run_finished"
    """The pipeline run ended with `exit_code`."""


class Event(BaseModel):
    """One line of the log."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: EventType
    time: float = Field(description="Seconds since 1970.")
    step: str = Field(default="", description="Name of the step; empty for the run itself.")
    attempt: int = Field(default=1, ge=1, description="Counts the processes that tried this step in this run.")
    done: int | None = Field(default=None, description="Units done; for training, optimizer steps.")
    total: int | None = Field(default=None, description="Units in all.")
    unit: str = Field(default="", description="What is counted: steps, questions, records.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Numbers at `done`.")
    exit_code: int | None = None
    message: str = ""
    hint: str = ""
    seconds: float | None = Field(default=None, description="Wall time of the step.")
    facts: dict[str, Any] = Field(default_factory=dict, description="Ids and small figures.")

    @property
    def outcome(self) -> str:
        """How a step ended: ran, reused, checked (it makes nothing that could be reused), stopped or failed. Empty if it did not."""
        if self.type is EventType.FINISHED:
            return "ran" if "key" in self.facts else "checked"
        if self.type is EventType.FAILED:
            return "stopped" if self.exit_code == ExitCode.PREEMPTED else "failed"
        return "reused" if self.type is EventType.REUSED else ""


class EventLog:
    """Appends the events of one step (or, with an empty name, of the run)."""

    def __init__(self, path: Path, step: str = "", attempt: int = 1) -> None:
        self.path, self.step, self.attempt = path, step, attempt

    def write(self, type: EventType, **fields: Any) -> Event:
        """Append one event. CannotWriteError if the log does not take it."""
        event = Event(type=type, time=time.time(), step=self.step, attempt=self.attempt, **fields)
        self.append(event)
        return event

    def append(self, event: Event) -> None:
        """Append an event as it is; it may have been written elsewhere. Errors as `write`."""
        append_line(self.path, event.model_dump_json(exclude_defaults=True))


class Follower:
    """Reads a log that others are still writing."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset

    def new(self) -> list[Event]:
        """The events since the last call; a line that is not finished yet waits for the next."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        return parse(whole)


def append_line(path: Path, text: str) -> None:
    """Append a line by one `write`, so that it does not mix with those of other processes. CannotWriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{text}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_write(path, error) from error


def read(path: Path) -> list[Event]:
    """All events of a log; empty if there is none."""
    return Follower(path).new()


def parse(content: bytes) -> list[Event]:
    """The events of whole lines; unknown ones are passed over."""
    return [event for line in content.splitlines() if (event := _parse(line)) is not None]


def _parse(line: bytes) -> Event | None:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        return None  # written by a newer version, or cut by a full disk: the log must stay readable

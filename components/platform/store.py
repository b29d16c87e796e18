"""The store: results of steps under their keys, verified before anyone uses them.

1. A step asks `lookup(kind, key)`. A folder that verifies, byte by byte, is the step's result, and the step is not run again.
2. A folder that does not verify is set aside as `bad-...` beside the good ones: kept for whoever wants to know what happened to
   it, and never found again. The step then runs as if nothing had been there.
3. `record` keeps, beside each folder, what the key was made of and who made the result: for `biovlm plan` and for the lineage. It
   is not inside the folder, because equal content must have an equal digest whoever made it.

The store is a folder; whoever adds another kind keeps these six methods.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model import manifest
from model.errors import DataError, MissingInputError, RefusedError


class Source(BaseModel):
    """One input of a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    uri: str = Field(description="Folder, relative to the store if it is there.")
    digest: str


class StepRecord(BaseModel):
    """What a key was made of, and who made the result."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    key: str
    kind: str = Field(description="Kind of step: data, train, evaluate, register, promote.")
    name: str = Field(description="Name of the step in its pipeline.")
    run_id: str = Field(description="The pipeline run that made the result.")
    piece: dict[str, Any] = Field(description="The part of the slice that belongs to the key.")
    identity: dict[str, str] = Field(description="Role -> digest of everything else that belongs to the key, but the code.")
    code: str = Field(description="Digest of the code.")
    inputs: dict[str, Source] = Field(default_factory=dict, description="Role -> artifact that was read.")
    revision: dict[str, str | bool] = Field(default_factory=dict, description="Commit of the checkout, and whether it was dirty.")
    versions: dict[str, str] = Field(default_factory=dict, description="Library -> version.")
    started: float = Field(description="Seconds since 1970.")
    seconds: float | None = Field(
        default=None, description="Wall time; empty if the process died right after writing the result."
    )


class Store:
    """A folder of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, key: str) -> Path:
        """Where the result of a step of `kind` with `key` is, or will be."""
        return self.root / "steps" / kind / key

    def scratch(self, kind: str, key: str) -> Path:
        """Where that step keeps what it needs to go on after a stop; it survives the process."""
        return self.root / "work" / kind / key

    @contextlib.contextmanager
    def alone(self, kind: str, key: str, on_wait: Callable[[], object]) -> Iterator[None]:
        """Inside, no other process of this machine makes the same result: two would write into one scratch folder.

        Args:
            kind: Kind of step.
            key: The step's key.
            on_wait: Called once if another process is at it, before waiting for it; it may die, then this one goes on.
        """
        path = self.root / "work" / kind / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("ab")
        except OSError as error:
            raise manifest.cannot_write(path, error) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def lookup(self, kind: str, key: str, on_bad: Callable[[str], object]) -> manifest.Manifest | None:
        """The manifest of the result if it is there and verifies, else None.

        Args:
            kind: Kind of step.
            key: The step's key.
            on_bad: Called with a sentence when a folder was set aside.
        """
        folder = self.folder(kind, key)
        if not folder.exists():
            return None
        try:
            return manifest.verify(folder)
        except (RefusedError, DataError, MissingInputError) as error:
            aside = self.set_aside(folder)
            on_bad(f"a stored result was damaged and is set aside as {aside.name}: {error.message}")
            return None

    def set_aside(self, folder: Path) -> Path:
        """Rename a bad folder so that no reader finds it; returns its new place."""
        aside = folder.with_name(f"bad-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}-{folder.name[:16]}")
        try:
            folder.rename(aside)
        except OSError as error:
            raise manifest.cannot_write(folder, error) from error
        return aside

    def record(self, kind: str, key: str) -> StepRecord | None:
        """The record of a result; None if there is none that can be read."""
        try:
            return StepRecord.model_validate_json(self._record_path(kind, key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write_record(self, record: StepRecord) -> None:
        """Write or replace the record of a result."""
        path = self._record_path(record.kind, record.key)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(record.model_dump_json(indent=1), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise manifest.cannot_write(path, error) from error

    def _record_path(self, kind: str, key: str) -> Path:
        return self.root / "steps" / kind / f"{key}.json"

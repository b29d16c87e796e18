"""The store: results of steps under their keys, verified before anyone uses them.

1. A step asks `lookup(kind, key)`. A folder that verifies, byte by byte, is the step's result, and the step is not run again.
2. A folder that does not verify is set aside as `bad-...` beside the good ones: kept for whoever wants to know what happened to
   it, and never found again. The step then runs as if nothing had been there.
3. `record` keeps, beside each folder, what the key was made of and who made the result: for `biovlm plan` and for the lineage. It
   is not inside the folder, because equal content must have an equal digest whoever made it.
4. `fetch(uri)` gives the folder of an artifact of any step, verified; `publish(uri)` makes one that was just written visible to
   all who share the store; `manifest_of` and `holds` tell of an artifact without its bytes.

A `Store` is a folder, and all of this is local. With BIOVLM_STORE it is a `SharedStore` (components/platform/shared_store.py): the
folder is then a cache of a bucket. An artifact's `uri` is its place relative to the store, the same on every machine.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.platform.cost import Cost
from components.platform.locks import held
from components.platform.origin import Origin
from components.platform.settings import Settings
from model import manifest
from model.errors import DataError, MissingInputError, RefusedError

KEY_DIGITS = 64


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
    origin: Origin | None = Field(default=None, description="Where and by whom it was made.")
    cost: Cost | None = Field(default=None, description="What it cost; empty if the process died right after writing the result.")
    started: float = Field(description="Seconds since 1970.")
    seconds: float | None = Field(
        default=None, description="Wall time; empty if the process died right after writing the result."
    )


def step_of(uri: str) -> tuple[str, str]:
    """Kind and key of the step that made the artifact at `uri`; both empty if it is not a step's."""
    parts = PurePosixPath(uri).parts
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == "steps" else ("", "")


def open_store(settings: Settings) -> Store:
    """The store of the settings: a folder, or one that is shared through a bucket. ConfigError: BIOVLM_STORE is no bucket."""
    if not settings.shared_store:
        return Store(settings.store)
    from components.platform.shared_store import SharedStore  # boto3, for those who share

    return SharedStore(settings.store, settings.shared_store)


class Store:
    """A folder of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, key: str) -> Path:
        """Where the result of a step of `kind` with `key` is, or will be."""
        return self.root / "steps" / kind / key

    def uri(self, folder: Path) -> str:
        """The place of a folder relative to the store, which may move as a whole; the whole path of one that is elsewhere."""
        return folder.relative_to(self.root).as_posix() if folder.is_relative_to(self.root) else str(folder)

    def fetch(self, uri: str, digest: str | None = None) -> Path:
        """The folder of the artifact at `uri`, after every byte was hashed.

        Raises:
            RefusedError: A byte is not what the manifest says, or the artifact is not the one of `digest`.
            MissingInputError: There is none.
        """
        folder = self._inside(uri)
        manifest.verify(folder, digest)
        return folder

    def publish(self, uri: str, record: StepRecord | None = None) -> manifest.Manifest:
        """Let all who share the store see the artifact in the folder of `uri`, which is whole, with the record of its step.

        Returns:
            The manifest that stands at `uri` from now on: another machine may have been first, and then it is that one's.
        """
        return manifest.read(self._inside(uri))

    def manifest_of(self, uri: str) -> manifest.Manifest:
        """What the artifact at `uri` says of itself, its files unseen. Errors as `model.manifest.read`."""
        return manifest.read(self._inside(uri))

    def names(self, folder: str) -> list[str]:
        """Names of the whole artifacts that lie in `folder`, relative to the store, sorted."""
        return sorted(path.parent.name for path in (self.root / folder).glob(f"[!.]*/{manifest.FILE_NAME}"))

    def moved(self) -> tuple[int, int]:
        """Bytes that this process received from what is shared, and sent there. A folder is not shared."""
        return 0, 0

    def holds(self, uri: str, digest: str) -> bool:
        """Whether the artifact of `digest` is at `uri` and can be used."""
        try:
            return bool(self.fetch(uri, digest))
        except (RefusedError, DataError, MissingInputError):
            return False

    def check(self) -> None:
        """Before a run: whether what is shared can be. A folder is not shared."""

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
        with held(self.root / "work" / kind / f"{key}.lock", on_wait):
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

    def record_of(self, uri: str) -> StepRecord | None:
        """The record of the step that made the artifact at `uri`; None if it is not a step's, or there is none."""
        kind, key = step_of(uri)
        return self.record(kind, key) if kind else None

    def write_record(self, record: StepRecord) -> None:
        """Write or replace the record of a result."""
        self._write_small(self._record_path(record.kind, record.key), record.model_dump_json(indent=1).encode())

    def small(self, name: str) -> bytes | None:
        """The content of a small file at `name`, relative to the store (a record, a manifest); None if there is none."""
        try:
            return self._inside(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keep(self, name: str, content: bytes) -> None:
        """Write or replace a small file at `name`, for all who share the store."""
        self._write_small(self._inside(name), content)

    def keys(self, kind: str) -> list[str]:
        """The keys of all steps of `kind` that have a record, sorted."""
        return sorted(path.stem for path in (self.root / "steps" / kind).glob("*.json") if len(path.stem) == KEY_DIGITS)

    def _write_small(self, path: Path, content: bytes) -> None:
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise manifest.cannot_write(path, error) from error

    def _record_path(self, kind: str, key: str) -> Path:
        return self.root / "steps" / kind / f"{key}.json"

    def _inside(self, uri: str) -> Path:
        """The folder of `uri`; a whole path, of an artifact that lies elsewhere, stays as it is."""
        return Path(uri) if Path(uri).is_absolute() else manifest.safe_join(self.root, uri)

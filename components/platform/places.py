"""Where a ledger and the history of a policy lie: a folder, or a prefix of a bucket. Names are made once, never replaced or removed.

    NAME/MARK/entries/00000001.json     one file an entry
    NAME/MARK/claims/KEY/000001         attempts of a run (fencing)
    NAME/MARK/sent/00000001/...         the outbox's notes
    retraining/POLICY/000001.json       looks of a policy (components/platform/retraining/journal.py)

`create` is the only way to write: of two that make one name at once, one gets it. In a folder, a file is written whole under another
name and then linked, so that no reader sees half of one, whenever the writer is killed. In a bucket, it is a conditional put.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Protocol

from components.platform.settings import Settings
from model import manifest


class Place(Protocol):
    """What keeps names with bytes."""

    label: str

    def create(self, name: str, content: bytes) -> bool:
        """Make `name`, durably; False if it is there. CannotWriteError: The place takes no writes."""

    def read(self, name: str) -> bytes | None:
        """The bytes of `name`; None if there is none."""

    def names(self, start: str) -> list[str]:
        """Sorted names that begin with `start`, a folder with a slash at its end."""

    def several(self, names: list[str]) -> dict[str, bytes]:
        """Name -> bytes of those that are there."""


class Folder:
    """A place on a file system that knows hard links."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, str(root)

    def create(self, name: str, content: bytes) -> bool:
        path = manifest.safe_join(self.root, name)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_durably(aside, content)
            os.link(aside, path)
            _flush(path.parent)
        except FileExistsError:
            return False
        except OSError as error:
            raise manifest.cannot_write(path, error) from error
        finally:
            aside.unlink(missing_ok=True)
        return True

    def read(self, name: str) -> bytes | None:
        try:
            return manifest.safe_join(self.root, name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, start: str) -> list[str]:
        folder = manifest.safe_join(self.root, start.rstrip("/"))
        found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def several(self, names: list[str]) -> dict[str, bytes]:
        return {name: content for name in names if (content := self.read(name)) is not None}


class Prefix:
    """A place in a bucket."""

    def __init__(self, where: str, variable: str, *parts: str) -> None:
        """`where` is `s3://BUCKET/PREFIX`, the value of `variable`; ConfigError if it is not."""
        from components.platform.objects import Objects, place_of  # boto3, for those who share

        bucket, prefix = place_of(where, variable, "what is written once")
        self._objects = Objects(bucket, prefix).at(*parts)
        self.label = self._objects.label

    def create(self, name: str, content: bytes) -> bool:
        return self._objects.put_new(name, content)

    def read(self, name: str) -> bytes | None:
        return self._objects.find(name)

    def names(self, start: str) -> list[str]:
        return sorted(self._objects.names(start))

    def several(self, names: list[str]) -> dict[str, bytes]:
        from components.platform.objects import side_by_side

        found = zip(names, side_by_side(self._objects.find, names), strict=True)
        return {name: content for name, content in found if content is not None}


def open_place(settings: Settings, *parts: str) -> Place:
    """The place of the ledger below `parts`: BIOVLM_LEDGER, else beside the shared store, else in the home."""
    if settings.ledger:
        return Prefix(settings.ledger, "BIOVLM_LEDGER", *parts)
    if settings.shared_store:
        return Prefix(settings.shared_store, "BIOVLM_STORE", "ledger", *parts)
    return Folder(settings.home.joinpath("ledger", *parts))


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

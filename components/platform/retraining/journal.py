"""What a policy decided before: one small JSON document for each look, and one for the end of each training.

1. `Journal(settings, policy)` is a folder of the home, or with BIOVLM_STORE a prefix of the bucket, so that pods share it.
2. `append` writes the next number by an exclusive create: of two looks at once one gets it, the other is refused and looks again.
3. `ended` adds how a training ended, once; `entries` reads all of it, with the ends put in.

Kept for the cool-down, the budget and for whoever asks why there was, or was not, a new model. Digests, counts and reasons: no record.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from components.platform.retraining.decision import Entry
from components.platform.settings import Settings
from model.errors import DataError, RefusedError
from model.manifest import cannot_write, write_durably

FOLDER = "retraining"
LOOK = re.compile(r"^(\d{6})\.json$")


class End(BaseModel):
    """How a training ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int
    run_id: str


class Place(Protocol):
    """Where documents lie by name."""

    label: str

    def names(self, start: str) -> list[str]: ...

    def find(self, name: str) -> bytes | None: ...

    def put_new(self, name: str, content: bytes) -> bool: ...


class Folder:
    """A place on this machine; an object of the bucket answers the same questions (components/platform/objects.py)."""

    def __init__(self, root: Path) -> None:
        self._root, self.label = root, str(root)

    def names(self, start: str) -> list[str]:
        """Of the documents that begin with `start`."""
        return [path.name for path in self._root.glob(f"{start}*.json")]

    def find(self, name: str) -> bytes | None:
        """A document; None if there is none."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def put_new(self, name: str, content: bytes) -> bool:
        """Make a document, whole and durable; False if there is one. CannotWriteError: the disk does not take it."""
        aside = self._root / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            write_durably(aside, content)
            os.link(aside, self._root / name)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            return False
        except OSError as error:
            raise cannot_write(self._root / name, error) from error
        finally:
            aside.unlink(missing_ok=True)
        return True


class Journal:
    """The looks of one policy."""

    def __init__(self, settings: Settings, policy: str) -> None:
        self._place = _place(settings, policy)

    def entries(self) -> list[Entry]:
        """Every look, oldest first. DataError: a document was changed, or one is missing."""
        numbers = sorted(int(match[1]) for name in self._place.names("") if (match := LOOK.match(name)))
        if numbers != list(range(1, len(numbers) + 1)):
            raise DataError(
                f"{self._place.label}: a look is missing among {len(numbers)}", "bring the history of the policy back"
            )
        return [self._entry(number) for number in numbers]

    def append(self, entry: Entry) -> None:
        """Write the next look. RefusedError: another process wrote one of this number at the same time."""
        if not self._place.put_new(_name(entry.number), entry.model_dump_json(indent=1).encode()):
            raise RefusedError(
                f"another process looked at the same time: {self._place.label} has number {entry.number} already",
                "nothing was begun here; the other one did what was to be done",
            )

    def ended(self, number: int, exit_code: int, run_id: str) -> None:
        """Say how the training of a look ended; what was said first stays."""
        self._place.put_new(_end(number), End(exit_code=exit_code, run_id=run_id).model_dump_json().encode())

    def _entry(self, number: int) -> Entry:
        try:
            found = Entry.model_validate_json(self._place.find(_name(number)) or b"")
            end = self._place.find(_end(number))
            return found if end is None else found.model_copy(update=End.model_validate_json(end).model_dump())
        except ValidationError:
            raise DataError(
                f"{self._place.label}/{_name(number)} is no look of a policy", "it was changed: bring it back from a copy"
            ) from None


def _place(settings: Settings, policy: str) -> Place:
    if not settings.shared_store:
        return Folder(settings.home / FOLDER / policy)
    from components.platform.objects import Objects, place_of  # boto3, for those who share

    return Objects(*place_of(settings.shared_store, "BIOVLM_STORE", "the history of a policy")).at(FOLDER, policy)


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _end(number: int) -> str:
    return f"{number:06d}.end.json"

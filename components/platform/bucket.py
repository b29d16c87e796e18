"""Checkpoints in an S3 bucket: `model.training.places.Place` over boto3, for pods that lose their disk with their node.

    s3://BUCKET/PREFIX/attempt-000001/claim                        the attempt is taken
    s3://BUCKET/PREFIX/attempt-000001/step-000100/...              as in a folder
    s3://BUCKET/PREFIX/quarantine/attempt-000001-step-000150/...   set aside, with `reason.txt`

1. A claim is a conditional put: of two starts that want the same number one gets it, the other takes the next. A claim stays while
   the run's place does.
2. A checkpoint's files are put first and its manifest last, conditionally: without it there is no checkpoint. Files without one are
   what a killed writer left; later attempts remove them. So `entries` names only what has a manifest.
3. `fetch` downloads into a folder, where the same verification runs as for a folder; S3's own checksums are not relied upon.
4. How a bucket can fail, and as which letter, is told in `components.platform.objects`.

An old attempt that wakes up sees a newer claim before it puts its manifest. In the moment between it can still finish a checkpoint
in its own folder: a whole one, of the same run, which harms nobody.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from components.platform.objects import Objects, place_of
from model import manifest
from model.training.places import ATTEMPT, QUARANTINE, STEP, Entry, Place, attempt_name, stale


def open_place(where: str, *parts: str) -> Place:
    """The place for the checkpoints of one step.

    Args:
        where: `s3://BUCKET/PREFIX`.
        parts: Names below the prefix that belong to this step alone.

    Raises:
        ConfigError: `where` is nothing of that form.
    """
    bucket, prefix = place_of(where, "BIOVLM_CHECKPOINTS", "checkpoints")
    return Bucket(bucket, "/".join(filter(None, (prefix, *parts))))


class Bucket(Objects):
    """A place that is a prefix of a bucket, of one run alone."""

    def claim(self) -> int:
        attempt = max(self._attempts(), default=0) + 1
        while not self.put_new(f"{attempt_name(attempt)}/claim", b""):
            attempt += 1
        self._sweep(attempt)
        return attempt

    def entries(self) -> list[Entry]:
        return sorted((entry for name in self.names("attempt-") if (entry := _committed(name))), reverse=True)

    def set_aside_before(self) -> list[str]:
        notes = [name for name in self.names(f"{QUARANTINE}/") if name.endswith("/reason.txt")]
        return [f"{name.split('/')[1]}: {self.get(name).decode(errors='replace').strip()}" for name in notes]

    @contextlib.contextmanager
    def stage(self, entry: Entry) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{entry.flat_name}-") as folder:
            yield Path(folder)

    def commit(self, staged: Path, entry: Entry) -> None:
        for file in manifest.read(staged).files:
            self.upload(staged / file.path, f"{entry.name}/{file.path}")
        self._check(entry.attempt)
        if not self.put_new(f"{entry.name}/{manifest.FILE_NAME}", (staged / manifest.FILE_NAME).read_bytes()):
            raise stale(self.label, entry.attempt, max(self._attempts(), default=0))

    @contextlib.contextmanager
    def fetch(self, entry: Entry) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{entry.flat_name}-") as folder:
            self._download(entry, Path(folder))
            yield Path(folder)

    def set_aside(self, entry: Entry, reason: str) -> None:
        aside = f"{QUARANTINE}/{entry.flat_name}"
        self.put(f"{aside}/reason.txt", reason.encode())
        names = self.names(f"{entry.name}/")
        for name in names:
            self.copy(name, f"{aside}/{name.removeprefix(entry.name + '/')}")
        self.delete(names)

    def remove(self, entry: Entry, attempt: int) -> None:
        self._check(attempt)
        self.delete(self.names(f"{entry.name}/"))

    def clear(self) -> None:
        self.delete(self.names(""))

    def _check(self, attempt: int) -> None:
        newest = max(self._attempts(), default=0)
        if newest != attempt:
            raise stale(self.label, attempt, newest)

    def _attempts(self) -> list[int]:
        found = (name.split("/") for name in self.names("attempt-") if name.endswith("/claim"))
        return [int(match.group(1)) for parts in found if (match := ATTEMPT.fullmatch(parts[0]))]

    def _sweep(self, attempt: int) -> None:
        """Remove what killed writers of older attempts left without a manifest.

        Claims stay: a number that is free again would be claimed again. Nothing of a newer attempt is touched, for this one may
        have been asleep since its own claim.
        """
        names = self.names("attempt-")
        whole = {entry.name for entry in (_committed(name) for name in names) if entry}
        self.delete([name for name in names if 0 < _writer(name) < attempt and name.rpartition("/")[0] not in whole])

    def _download(self, entry: Entry, folder: Path) -> None:
        for name in self.names(f"{entry.name}/"):
            self.download(name, manifest.safe_join(folder, name.removeprefix(f"{entry.name}/")))


def _committed(name: str) -> Entry | None:
    """The checkpoint whose manifest this object is."""
    parts = name.split("/")
    if len(parts) != 3 or parts[2] != manifest.FILE_NAME:
        return None
    attempt, step = ATTEMPT.fullmatch(parts[0]), STEP.fullmatch(parts[1])
    return Entry(int(step.group(1)), int(attempt.group(1))) if attempt and step else None


def _writer(name: str) -> int:
    """The attempt that wrote this file of a checkpoint; 0 for anything else, as a claim."""
    match = ATTEMPT.fullmatch(name.split("/")[0])
    return int(match.group(1)) if match and name.count("/") > 1 else 0

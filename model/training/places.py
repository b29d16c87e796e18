"""Where the checkpoints of one run lie: what the store asks of a place, and the place that is a folder.

    attempt-000001/step-000100/       a checkpoint: manifest.json and the files that it names
    quarantine/attempt-000001-step-000150/   set aside because it did not verify; never read again, never removed by itself
    quarantine/attempt-000001-step-000150.txt   why

1. Each start of the run claims an attempt: the next number, which only one claimant can get. The number is its fencing token.
2. An attempt writes into its own folder alone, and only while it is the newest: an old one that was asleep and wakes up neither
   commits nor removes anything. Its process ends with RefusedError (exit 77).
3. A checkpoint is made in a staging folder, sealed with its manifest, and committed; without its manifest it is none.

A place holds the same bytes whatever it is made of, so a checkpoint copied from a folder to a bucket and back stays valid.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from model import manifest
from model.errors import RefusedError

QUARANTINE = "quarantine"
LOCK = "fence.lock"
ATTEMPT = re.compile(r"attempt-(\d{6,})")
STEP = re.compile(r"step-(\d{6,})")


class Entry(NamedTuple):
    """One checkpoint; the greater is the newer."""

    step: int
    """Finished optimizer steps."""
    attempt: int
    """Which start of the run wrote it."""

    @property
    def name(self) -> str:
        """Its path in the place."""
        return f"{attempt_name(self.attempt)}/step-{self.step:06d}"

    @property
    def flat_name(self) -> str:
        """Its name in the quarantine."""
        return self.name.replace("/", "-")


class Place(Protocol):
    """What the store needs. Only rank 0 claims, commits, sets aside and removes; every rank fetches.

    Errors: CannotWriteError where the place takes no writes; InternalError where it does not answer; RefusedError, of `commit` and
    `remove`, for an attempt that is no longer the newest.
    """

    label: str
    """For letters."""

    def claim(self) -> int:
        """Begin an attempt: a number above all before. It can be written to when this returns."""

    def entries(self) -> list[Entry]:
        """What looks like a checkpoint, newest first."""

    def set_aside_before(self) -> list[str]:
        """Name and reason of what lies in the quarantine."""

    def stage(self, entry: Entry) -> contextlib.AbstractContextManager[Path]:
        """An empty folder to make a checkpoint in; gone afterwards, unless it was committed."""

    def commit(self, staged: Path, entry: Entry) -> None:
        """Make a sealed folder the checkpoint `entry`, at once and as a whole."""

    def fetch(self, entry: Entry) -> contextlib.AbstractContextManager[Path]:
        """Inside, the checkpoint as a folder to read from."""

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Move it into the quarantine, with the reason beside it."""

    def remove(self, entry: Entry, attempt: int) -> None:
        """Remove a checkpoint in the name of `attempt`."""

    def clear(self) -> None:
        """Remove everything: the run is finished and its result stands elsewhere."""


def attempt_name(attempt: int) -> str:
    """Folder of an attempt."""
    return f"attempt-{attempt:06d}"


def stale(label: str, attempt: int, newest: int) -> RefusedError:
    """The letter for an attempt that another one has followed."""
    what = f"attempt {newest} has begun since" if newest > attempt else "it was removed since"
    return RefusedError(
        f"attempt {attempt} of the run in {label} may no longer write there: {what}",
        "nothing is lost, the newer attempt goes on; if both are wanted, give each a folder of its own",
    )


class Folder:
    """A place that is a folder of this machine, or one that all workers share.

    Args:
        root: Folder of this run alone; made when the first attempt is claimed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.label = str(root)

    def claim(self) -> int:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._fence(0):
                attempt = max(self._attempts(), default=0) + 1
                folder = self.root / attempt_name(attempt)
                folder.mkdir()
                probe = folder / ".probe"  # a disk that takes no bytes is found out before the first step, not after
                manifest.write_durably(probe, b"\0" * 4096)
                probe.unlink()
                self._sweep(attempt)
        except OSError as error:
            raise manifest.failed_write(self.root, error) or manifest.cannot_write(self.root, error) from error
        return attempt

    def entries(self) -> list[Entry]:
        found = [
            Entry(int(match.group(1)), attempt)
            for attempt in self._attempts()
            for path in (self.root / attempt_name(attempt)).glob("step-*")
            if (match := STEP.fullmatch(path.name))
        ]
        return sorted(found, reverse=True)

    def set_aside_before(self) -> list[str]:
        folders = sorted(path for path in (self.root / QUARANTINE).glob("*") if path.is_dir())
        return [f"{path.name}: {_reason(path)}" for path in folders]

    @contextlib.contextmanager
    def stage(self, entry: Entry) -> Iterator[Path]:
        aside = self.root / f".staging-{entry.flat_name}-{uuid.uuid4().hex[:8]}"
        try:
            aside.mkdir()
        except FileNotFoundError:  # the run was finished and removed
            raise stale(self.label, entry.attempt, 0) from None
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def commit(self, staged: Path, entry: Entry) -> None:
        with self._fence(entry.attempt):
            self._check(entry.attempt)
            manifest.publish(staged, self.root / entry.name)

    @contextlib.contextmanager
    def fetch(self, entry: Entry) -> Iterator[Path]:
        yield self.root / entry.name

    def set_aside(self, entry: Entry, reason: str) -> None:
        room = self.root / QUARANTINE
        aside = room / entry.flat_name
        try:
            room.mkdir(exist_ok=True)
            if aside.exists():  # somebody put one back by hand, and it was bad again
                aside = room / f"{entry.flat_name}-{uuid.uuid4().hex[:4]}"
            _note(aside).write_text(f"{reason}\n", encoding="utf-8")
            (self.root / entry.name).rename(aside)
        except OSError as error:
            raise manifest.cannot_write(aside, error) from error

    def remove(self, entry: Entry, attempt: int) -> None:
        hidden = self.root / f".{entry.flat_name}.old"
        with self._fence(attempt):
            self._check(attempt)
            (self.root / entry.name).rename(hidden)  # first out of sight: a crash leaves no half checkpoint to stumble over
        shutil.rmtree(hidden)

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def _attempts(self) -> list[int]:
        return [int(match.group(1)) for path in self.root.glob("attempt-*") if (match := ATTEMPT.fullmatch(path.name))]

    def _check(self, attempt: int) -> None:
        """Refuse an attempt that is not the newest, or whose run was finished and removed."""
        newest = max(self._attempts(), default=0)
        if newest != attempt:
            raise stale(self.label, attempt, newest)

    def _sweep(self, attempt: int) -> None:
        """Remove what attempts that were killed left half made: staging folders, and folders of attempts without a checkpoint."""
        leftovers: Sequence[Path] = [*self.root.glob(".staging-*"), *self.root.glob(".attempt-*")]
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        for older in self._attempts():
            if older != attempt:
                with contextlib.suppress(OSError):
                    (self.root / attempt_name(older)).rmdir()  # only if it is empty

    @contextlib.contextmanager
    def _fence(self, attempt: int) -> Iterator[None]:
        """Inside, no other process claims, commits or removes: what was checked still holds when it is acted upon."""
        try:
            stream = (self.root / LOCK).open("ab")
        except FileNotFoundError:  # the run was finished and removed
            raise stale(self.label, attempt, 0) from None
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _note(aside: Path) -> Path:
    return aside.with_name(f"{aside.name}.txt")


def _reason(aside: Path) -> str:
    try:
        return _note(aside).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "set aside by hand"

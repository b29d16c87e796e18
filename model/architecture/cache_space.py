"""How much a folder of caches may hold, and which cache goes first.

    ROOT/<name of a cache>/about.json     what the cache is of; its time of change is the cache's last use
    ROOT/<name of a cache>/ab/cdef...     entries
    ROOT/.aside/                          files that are being written, caches that are being removed

1. A writer asks `admit` before each entry. The folder is measured at the first entry, and again after every 64th of the limit that
   this writer has added, so several writers together pass the limit by a 64th each at most.
2. When the limit is reached, whole caches that nobody has used for an hour go, the one unused longest first: its tower is not the one
   of today. A cache in use never goes.
3. If that is not enough, nothing more is written: the first images stay, since every epoch asks for each image about once.
4. Some of the disk is always left free: checkpoints matter more than a cache.

Removing renames first, so another process sees a cache or none, and a reader that loses a race computes again. Leftovers of killed
processes are removed when an hour old.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

ABOUT, ASIDE = "about.json", ".aside"
RESERVE_BYTES = 2 * 2**30
"""Left free on the disk."""
GRACE_SECONDS = 3600.0
SHARE_BETWEEN_MEASURES = 64


class Space:
    """The room of one cache among the others of a folder; for one thread.

    Args:
        root: Folder of all caches.
        own: Folder of this one.
        limit_bytes: Of all caches together.
        reserve_bytes: Left free on the disk.
    """

    def __init__(self, root: Path, own: Path, limit_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._root, self._own, self._limit, self._reserve = root, own, limit_bytes, reserve_bytes
        self._measured: int | None = None
        self._added = 0
        self.reason = ""
        """Why nothing more is admitted; empty while something is."""

    def admit(self, num_bytes: int) -> bool:
        """Whether an entry of so many bytes may be written; once refused, always refused. OSError if the folder cannot be read."""
        if self.reason:
            return False
        if self._measured is None or self._added >= self._limit // SHARE_BETWEEN_MEASURES:
            self._measure(num_bytes)
        total = (self._measured or 0) + self._added + num_bytes
        if not self.reason and total > self._limit:
            self.reason = f"it holds {(total - num_bytes) / 2**30:.2f} GiB of at most {self._limit / 2**30:.2f}"
        self._added += 0 if self.reason else num_bytes
        return not self.reason

    def _measure(self, num_bytes: int) -> None:
        _sweep(self._root / ASIDE)
        sizes = {folder: sum(_sizes(folder)) for folder in _caches(self._root)}
        total = sum(sizes.values()) + sum(_sizes(self._root / ASIDE))
        for folder in sorted(sizes, key=_last_use):
            if total + num_bytes <= self._limit:
                break
            if folder != self._own and time.time() - _last_use(folder) > GRACE_SECONDS:
                _remove(folder, self._root / ASIDE)
                total -= sizes[folder]
        self._measured, self._added = total, 0
        free = shutil.disk_usage(self._root).free
        if free < self._reserve:
            self.reason = f"the disk has {free / 2**30:.2f} GiB free, {self._reserve / 2**30:.2f} are left to checkpoints"


def _caches(root: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False) and entry.name != ASIDE]


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes of each file below `folder`; what another process removes meanwhile is not counted."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes(Path(entry.path))
            continue
        try:
            yield entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue


def _last_use(folder: Path) -> float:
    for path in (folder / ABOUT, folder):
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            continue
    return 0.0


def _remove(folder: Path, aside: Path) -> None:
    gone = aside / uuid.uuid4().hex
    try:
        os.rename(folder, gone)
    except OSError:
        return  # another process was faster
    shutil.rmtree(gone, ignore_errors=True)


def _sweep(aside: Path) -> None:
    """Remove what killed processes left."""
    for entry in os.scandir(aside):
        try:
            old = time.time() - entry.stat(follow_symlinks=False).st_mtime > GRACE_SECONDS
            if old and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif old:
                Path(entry.path).unlink()
        except FileNotFoundError:
            continue

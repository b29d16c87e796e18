"""Locks between the processes of one machine: an open file that the kernel gives back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from model import manifest


@contextlib.contextmanager
def held(path: Path, on_wait: Callable[[], object] | None = None, shared: bool = False) -> Iterator[None]:
    """Inside, no other process holds the lock at `path`.

    Args:
        path: A file for nothing else, made on first need.
        on_wait: Called once if another process holds it, before waiting; it may die, then this one goes on.
        shared: Others may hold it too, if they hold it shared.

    Raises:
        CannotWriteError: There can be no such file.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    except OSError as error:
        raise manifest.cannot_write(path, error) from error
    with stream:
        try:
            fcntl.flock(stream, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(stream, how)
        yield

"""Columns of numbers and texts in files without a name, mapped into memory: as many rows as the disk holds.

1. A `Writer` appends values to a temporary file through a small buffer.
2. `close` maps the file and lets go of its name: it vanishes with the last reference to the column, also after kill -9.

Mapped pages are the system's to take back, so a million rows weigh as little on a process as ten thousand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from model import manifest

BUFFER_BYTES = 1 << 20


class Writer:
    """Appends numbers of one type. CannotWriteError on a full disk."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = np.dtype(kind)
        self._file = tempfile.TemporaryFile(buffering=BUFFER_BYTES)  # noqa: SIM115 (closed by `close`)
        self._count = 0

    def append(self, values: np.ndarray | Iterable[int]) -> None:
        """Add values at the end."""
        block = np.asarray(values, self._kind)
        self._count += len(block)
        try:
            self._file.write(block.tobytes())
        except OSError as error:
            raise manifest.cannot_write(Path(tempfile.gettempdir()), error) from error

    def __len__(self) -> int:
        return self._count

    def close(self) -> np.ndarray:
        """(N,) everything that was appended, read-only."""
        with self._file as file:
            try:
                file.flush()
            except OSError as error:
                raise manifest.cannot_write(Path(tempfile.gettempdir()), error) from error
            return np.memmap(file, self._kind, "r", shape=(self._count,)) if self._count else np.zeros(0, self._kind)


def mapped(values: np.ndarray) -> np.ndarray:
    """The same numbers, read-only, in a file without a name."""
    writer = Writer(values.dtype.type)
    writer.append(values)
    return writer.close()


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """A column of texts."""

    letters: np.ndarray
    """UTF-8 of all texts behind each other."""
    ends: np.ndarray
    """(N,) where each ends."""

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = int(self.ends[number - 1]) if number else 0
        return self.letters[start : int(self.ends[number])].tobytes().decode("utf-8", "surrogatepass")


class TextWriter:
    """Appends texts."""

    def __init__(self) -> None:
        self._letters, self._ends = Writer(np.uint8), Writer(np.int64)

    def append(self, text: str) -> None:
        """Add one at the end."""
        self._letters.append(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
        self._ends.append([len(self._letters)])

    def __len__(self) -> int:
        return len(self._ends)

    def close(self) -> Texts:
        """Everything that was appended."""
        return Texts(self._letters.close(), self._ends.close())

"""Features of images on disk: a tower that does not learn looks at an image once, for all epochs, stages and evaluations.

The journey of an entry:
1. The cache of a tower is a folder named by the digest of everything that can change a bit of its features (`features.tower_key`);
   an entry in it is named by the SHA-256 of the image file. So nothing is ever out of date: other weights are another folder.
2. `put` hands features to a background thread and returns at once; if more than `PENDING_BYTES` wait there, they are not kept.
3. The thread asks `cache_space` for room, writes the entry aside and renames it. Two processes that write the same entry write the
   same bytes, and one that is killed leaves nothing that a reader would find.
4. `get` maps the file, compares its header with its name, and its checksum with its bytes, every time: CRC-32, at 3 GB/s, finds
   every cut and every flipped bit, and two of them. What does not fit is removed, computed again, and told once.
5. A disk that is full or takes no writes ends the filling, not the training, and is told once.

The process holds no features between two calls: the mapping ends with the copy, and the pages belong to the operating system.
An entry: 128 bytes of header (magic, digests of tower and image, number format, P, D, bytes, CRC-32), then (P, D) as they are.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from model.architecture.cache_space import ABOUT, ASIDE, RESERVE_BYTES, Space
from model.manifest import canonical_json, digest_of

MAGIC = b"BVLMFEA1"
FIELDS = struct.Struct("<8s32s32s16sIIQ")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = 128
PENDING_BYTES = 64 * 2**20
MARK_SECONDS = 600.0


class FeatureCache:
    """Features (P, D) of one tower by the SHA-256 of the image file; for several threads and processes at once.

    Args:
        root: Folder of the caches of all towers; made if it is not there.
        limit_bytes: Of all caches in it together.
        key: What can change a bit of the features; JSON values.
        shape: (P, D).
        dtype: Of the features.
        reserve_bytes: Left free on the disk.
    """

    def __init__(
        self,
        root: Path,
        limit_bytes: int,
        key: Mapping[str, Any],
        shape: tuple[int, int],
        dtype: torch.dtype,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        name = digest_of(key)
        self.folder = root / name
        self._aside, self._name, self._shape, self._dtype = root / ASIDE, bytes.fromhex(name), shape, dtype
        self.entry_bytes = shape[0] * shape[1] * dtype.itemsize
        self._space = Space(root, self.folder, limit_bytes, reserve_bytes)
        self._writer = ThreadPoolExecutor(1, "feature-cache")  # waits at the end of the process for what is still to be written
        self._lock = threading.Lock()
        self._pending_bytes, self._closed, self._damaged = 0, False, False
        self._news: list[str] = []
        self._about, self._marked = canonical_json(key), -math.inf
        try:
            self._aside.mkdir(parents=True, exist_ok=True)
            self._mark()
        except OSError as error:
            self._close(f"cannot be filled: {error.strerror or error}")

    def get(self, digest: str) -> torch.Tensor | None:
        """(P, D) on the CPU of the image with this SHA-256 (64 hex digits); None if it is not there, or was damaged."""
        path = self._path(digest)
        try:
            self._mark()
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                found = self._read(stream.fileno(), digest) if size == HEADER_BYTES + self.entry_bytes else None
        except FileNotFoundError:
            return None
        except OSError:
            found = None
        if found is None:
            self._discard(path)
        return found

    def put(self, digest: str, features: torch.Tensor) -> None:
        """Keep (P, D), from any device, for later; does not wait for the disk. The caller must not change them afterwards."""
        with self._lock:
            if self._closed or self._pending_bytes + self.entry_bytes > PENDING_BYTES:
                return
            self._pending_bytes += self.entry_bytes
        self._writer.submit(self._write, digest, features)

    def flush(self) -> None:
        """Wait until everything handed in is written or given up."""
        self._writer.submit(int).result()

    def news(self) -> list[str]:
        """What a person should hear, each thing once."""
        with self._lock:
            told, self._news = self._news, []
        return told

    def _mark(self) -> None:
        """Say what the cache is of, and with that when it was last used; a few times an hour."""
        if time.monotonic() - self._marked < MARK_SECONDS:
            return
        self._marked = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        aside = self._aside / uuid.uuid4().hex
        aside.write_text(self._about, encoding="utf-8")
        os.replace(aside, self.folder / ABOUT)

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:]

    def _header(self, digest: str) -> bytes:
        kind = str(self._dtype).removeprefix("torch.").encode()
        return FIELDS.pack(MAGIC, self._name, bytes.fromhex(digest), kind, *self._shape, self.entry_bytes)

    def _read(self, descriptor: int, digest: str) -> torch.Tensor | None:
        expected = self._header(digest)
        # A private copy on write: torch takes only memory that it may write to, and nothing ever does.
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as mapped:
            content = memoryview(mapped)
            try:
                stored = bytes(content[:HEADER_BYTES])
                checksum = zlib.crc32(content[HEADER_BYTES:], zlib.crc32(expected))
                if stored != _padded(expected + CHECKSUM.pack(checksum)):
                    return None
                return torch.frombuffer(content[HEADER_BYTES:], dtype=self._dtype).reshape(self._shape).clone()
            finally:
                content.release()

    def _write(self, digest: str, features: torch.Tensor) -> None:
        """In the background thread."""
        path, aside = self._path(digest), self._aside / uuid.uuid4().hex
        try:
            if self._closed or path.exists():
                return
            if not self._space.admit(HEADER_BYTES + self.entry_bytes):
                self._close(f"is not filled further: {self._space.reason}; see BIOVLM_FEATURE_CACHE_GIB")
                return
            self._write_entry(path, aside, digest, features)
        except OSError as error:
            aside.unlink(missing_ok=True)
            self._close(f"cannot be filled: {error.strerror or error}")
        finally:
            with self._lock:
                self._pending_bytes -= self.entry_bytes

    def _write_entry(self, path: Path, aside: Path, digest: str, features: torch.Tensor) -> None:
        content = memoryview(features.detach().to("cpu").contiguous().view(torch.uint8).numpy()).cast("B")
        header = self._header(digest)
        with aside.open("xb") as stream:
            stream.write(_padded(header + CHECKSUM.pack(zlib.crc32(content, zlib.crc32(header)))))
            stream.write(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, path)

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # where it cannot be removed, it is found damaged again
            path.unlink(missing_ok=True)
        with self._lock:
            first, self._damaged = not self._damaged, True
        if first:
            entry = f"{path.parent.name}{path.name[:10]}"
            self._tell(f"entry {entry} is damaged; it is removed and computed again, and so is every other one that is found so")

    def _close(self, why: str) -> None:
        if not self._closed:
            self._closed = True
            self._tell(f"the folder {why}; images that are not in it are encoded each time they are shown")

    def _tell(self, what: str) -> None:
        with self._lock:
            self._news.append(f"feature cache: {what}")


def _padded(header: bytes) -> bytes:
    return header.ljust(HEADER_BYTES, b"\0")

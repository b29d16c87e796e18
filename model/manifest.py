"""Artifact folders that describe themselves, and become visible only when they are whole.

The journey of an artifact:
1. `commit(final, kind, parents, facts)` opens a folder beside `final` that no reader looks at; the caller writes its files there.
2. On a clean exit every file is flushed to disk and hashed, `manifest.json` is written last, and the folder is renamed to `final`
   in one step. On an error the folder is removed, and whatever stood at `final` before is untouched.
   Who needs a say between the two uses `seal` and `publish`, of which `commit` is made.
3. `read(folder)` returns the manifest; `verify(folder)` also re-hashes every file and refuses one that was changed, is missing,
   or was added.

A folder without a manifest that verifies does not exist for any reader. The name of an artifact is `Manifest.digest`: it covers
kind, files, parents and facts, and not the time or place of writing, so equal content has an equal name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import BiovlmError, CannotWriteError, DataError, MissingInputError, RefusedError

FILE_NAME = "manifest.json"
SCHEMA_VERSION = 1
CANNOT_WRITE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FULL_DISK = ("No space left on device", "disk is full", "File too large", "Disk quota exceeded")
"""How libraries (safetensors, SQLite, DVC) tell of a full disk in errors that are no OSError."""


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Path relative to the folder, with forward slashes.")
    size_bytes: int = Field(ge=0, description="Size in bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content, in hex.")


class Manifest(BaseModel):
    """What an artifact folder says about itself (`manifest.json`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of this layout.")
    kind: str = Field(description="What the folder holds: data, base, checkpoint, export, report, receipt, decision.")
    files: tuple[FileEntry, ...] = Field(description="Every file of the folder but the manifest, sorted by path.")
    parents: dict[str, str] = Field(default_factory=dict, description="Role of each input -> digest of its manifest.")
    facts: dict[str, Any] = Field(default_factory=dict, description="Small JSON facts about the content.")

    @property
    def digest(self) -> str:
        """The name of the content: SHA-256 of the canonical JSON of this manifest, 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN and infinity are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def as_text(manifest: Manifest) -> str:
    """The content of the manifest's file, to the byte."""
    return manifest.model_dump_json(indent=1)


def sha256_text(text: str) -> str:
    """SHA-256 (64 hex digits) of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative`, or RefusedError if that would name something outside `root` (also through a symbolic link)."""
    pure = PurePosixPath(relative)
    bad = (
        not relative
        or "\x00" in relative
        or "\\" in relative
        or pure.is_absolute()
        or ".." in pure.parts
        or relative.startswith("~")
        or "://" in relative
    )
    path = root / relative
    if bad or not path.resolve().is_relative_to(root.resolve()):
        raise RefusedError(
            f"a path leaves its folder: {relative!r} is not inside {root}",
            "use a relative path with forward slashes that stays inside the folder",
        )
    return path


def read(folder: Path) -> Manifest:
    """The manifest of `folder`. MissingInputError if there is none, DataError if it cannot be understood."""
    path = folder / FILE_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(
            f"no artifact at {folder}: it has no {FILE_NAME}",
            "the step that writes it did not finish; run the command again",
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path} is not a manifest: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}",
            "the file was changed or cut; remove the folder and run the command again",
        ) from None


def verify(folder: Path, digest: str | None = None) -> Manifest:
    """Read the manifest and re-hash every file of `folder`.

    Args:
        folder: The artifact.
        digest: The digest it must have, if the reader knows it.

    Raises:
        RefusedError: A file is missing, was added, or has another size or SHA-256; or the digest is not the expected one.
    """
    manifest = read(folder)
    hint = "the artifact was changed after it was written; restore it or remove the folder and run the command again"
    for problem in problems(folder, manifest, digest):
        raise RefusedError(problem, hint)
    return manifest


def problems(folder: Path, manifest: Manifest, digest: str | None = None) -> Iterator[str]:
    """A sentence for each thing in `folder` that is not as `manifest` says, found as far as they are asked for; see `verify`."""
    if digest is not None and manifest.digest != digest:
        yield f"{folder} is {manifest.digest[:12]}, expected {digest[:12]}"
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {FILE_NAME}
    listed = {entry.path for entry in manifest.files}
    if present != listed:
        missing, added = sorted(listed - present), sorted(present - listed)
        yield f"{folder}: {len(missing)} files missing {missing[:3]}, {len(added)} added {added[:3]}"
    for entry in manifest.files:
        path = safe_join(folder, entry.path)
        if entry.path not in present:
            continue
        size = path.stat().st_size
        if size != entry.size_bytes:
            yield f"{path} has {size} bytes, the manifest says {entry.size_bytes}"
        elif (found := sha256_file(path)) != entry.sha256:
            yield f"{path} has SHA-256 {found[:12]}, the manifest says {entry.sha256[:12]}"


@contextlib.contextmanager
def commit(
    final: Path, kind: str, parents: Mapping[str, str] | None = None, facts: dict[str, Any] | None = None
) -> Iterator[Path]:
    """Give a folder to write into; on a clean exit it becomes `final` with its manifest, else it vanishes.

    `facts` is read at the end, so the caller may fill it while writing. If `final` already holds an artifact, it is replaced only
    after the new one is whole. CannotWriteError if the disk is full or does not take writes.
    """
    aside = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        aside.mkdir(parents=True)
        yield aside
        seal(aside, kind, parents, facts)
        publish(aside, final)
    except Exception as error:
        letter = failed_write(final, error)
        if letter is None:
            raise
        raise letter from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def seal(folder: Path, kind: str, parents: Mapping[str, str] | None = None, facts: dict[str, Any] | None = None) -> Manifest:
    """Flush and hash every file of `folder`, then write its manifest, the mark that it is whole. OSError as the disk says."""
    manifest = Manifest(kind=kind, files=_entries(folder), parents=dict(parents or {}), facts=facts or {})
    write_durably(folder / FILE_NAME, as_text(manifest).encode())
    return manifest


def publish(aside: Path, final: Path) -> None:
    """Rename the sealed folder `aside` to `final`; an artifact already there steps aside first and is removed last."""
    old = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.old"
    if final.exists():
        os.rename(final, old)
    os.rename(aside, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file, on the disk when this returns."""
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def failed_write(path: Path, error: BaseException) -> CannotWriteError | None:
    """The letter for `error` if it says that `path` could not be written, or comes from a full disk, whichever library says it."""
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE_ERRNOS:
        return cannot_write(path, error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BiovlmError):
        if (isinstance(cause, OSError) and cause.errno in FULL_ERRNOS) or any(words in str(cause) for words in FULL_DISK):
            return cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        cause = cause.__cause__ or cause.__context__
    return None


def cannot_write(path: Path, error: OSError) -> CannotWriteError:
    """The letter for a write that failed, with the free space on the disk of `path`."""
    near = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    free_mib = shutil.disk_usage(near).free / 2**20
    hint = (
        f"{free_mib:,.0f} MiB are free there; free some space, or set BIOVLM_HOME to another disk"
        if error.errno in FULL_ERRNOS
        else "check that the folder exists and may be written, or set BIOVLM_HOME to another place"
    )
    return CannotWriteError(f"cannot write {path}: {error.strerror or error}", hint)


def _entries(folder: Path) -> tuple[FileEntry, ...]:
    """Hash and flush every file below `folder`."""
    files = sorted(p for p in folder.rglob("*") if not p.is_dir())
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), size_bytes=p.stat().st_size, sha256=sha256_file(p)) for p in files
    )

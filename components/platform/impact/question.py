"""What may be asked of the index, and how a withdrawal list is read.

A list is a text file with one thing a line, `KIND VALUE`; blank lines and lines that begin with `#` are passed over:

    patient  P-000123
    record   vqa-rad/1201          (or without the set: in every set)
    image    scans/left.png        (a file, or sha256:HEX)
    data     vqa-rad@4f2a91c       (or without @: every version of the set; or the digest of one)
    base     phantom-tower         (or its digest)
    licence  CC-BY-NC-4.0

Errors name lines, never what stands in them: it could be a patient's name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from model.errors import DataError, MissingInputError, UsageError
from model.manifest import sha256_file

SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
MOST_BYTES = 64 * 2**20
MOST_CHARS = 4096


class Subject(StrEnum):
    """Kinds of things that a version can have learned from."""

    IMAGE = "image"
    RECORD = "record"
    PATIENT = "patient"
    DATA = "data"
    BASE = "base"
    LICENCE = "licence"


@dataclass(frozen=True)
class Item:
    """One thing asked for."""

    subject: Subject
    value: str
    line: int = 0
    """In the withdrawal list, from 1; 0 for one of the command line."""
    file: Path | None = None
    """Of an image that lies on this machine."""


@dataclass(frozen=True)
class Withdrawal:
    """A list of things that must no longer be learned from."""

    items: tuple[Item, ...]
    digest: str
    """SHA-256 of the file: what registry and ledger name instead of its content."""


def item(subject: Subject, value: str, line: int = 0, folder: Path | None = None) -> Item:
    """One thing asked for; a path of an image becomes the SHA-256 of its bytes.

    Raises:
        MissingInputError: There is no such image file.
        UsageError: Empty, or too long to be an id.
    """
    where = f"line {line} of the list" if line else f"--{subject}"
    if not value.strip() or len(value) > MOST_CHARS:
        raise UsageError(f"{where} is {'empty' if not value.strip() else 'too long'}", "give an id, or the path of an image")
    if subject is not Subject.IMAGE:
        return Item(subject, value.strip(), line)
    named = SHA256.fullmatch(value.strip())
    if named:
        return Item(subject, named[1], line)
    path = (folder or Path()) / value.strip()
    if not path.is_file():
        shown = where if line else str(path)
        raise MissingInputError(f"no image at {shown}", "give the path of an image file, or sha256:HEX of its bytes")
    return Item(subject, sha256_file(path), line, path)


def read_list(path: Path) -> Withdrawal:
    """The withdrawal list in a file; paths of images are relative to its folder.

    Raises:
        MissingInputError: No such file, or an image of it is not there.
        DataError: Not UTF-8, nothing in it, or a line that is not `KIND VALUE`.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES >> 20} MiB", "divide the list")
        content = path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise MissingInputError(f"cannot read {path}: {error.strerror}", "give the path of a withdrawal list") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8", "save the list as UTF-8") from None
    found = []
    for number, text in enumerate(lines, 1):
        if text.strip() and not text.lstrip().startswith("#"):
            kind, _, value = text.strip().partition(" ")
            if kind not in list(Subject) or not value.strip():
                raise DataError(
                    f"{path}:{number}: not `KIND VALUE`", f"begin the line with one of {', '.join(Subject)}, and the id behind it"
                )
            found.append(item(Subject(kind), value, number, path.parent))
    if not found:
        raise DataError(f"{path} names nothing", "write one thing a line: `patient ID`, `record SET/ID`, `image FILE`, ...")
    return Withdrawal(tuple(dict.fromkeys(found)), hashlib.sha256(content).hexdigest())

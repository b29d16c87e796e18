"""Opening a data set and reading its records, strictly.

The journey of a record:
1. `open_dataset(folder)` verifies the manifest once: every file is what it was when the data set was made.
2. `stream(split)` and `records(split)` read `records/SPLIT.jsonl` line by line. A line that is not strict JSON, does not fit
   `Record`, holds a reserved token, or names an image outside the folder or not in the manifest is set aside with its reason
   (`Finding`).
3. If too large a share is set aside, or nothing is left, the split is refused: DataError (exit 65) before any training begins.
4. Two records with one id are never set aside quietly: nobody could say which one an evaluation meant.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from model.config import Kind
from model.data import reserved
from model.data.images import MAX_PIXELS
from model.data.records import Record
from model.data.strict_json import Flaw, FlawError, lines, parse
from model.errors import DataError, MissingInputError, RefusedError
from model.manifest import Manifest, read, safe_join, sha256_file
from model.manifest import verify as verify_files

KIND = "data"
RECORDS = "records"
MAX_QUARANTINED = 0.02


@dataclass(frozen=True)
class Finding:
    """One record that is set aside, or one image that makes its records so. No content."""

    flaw: Flaw
    file: str
    """File of the records, relative to the data set."""
    line: int
    """From 1."""
    record_id: str
    """Empty where the line could not be read so far."""
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.flaw}{f' ({self.record_id})' if self.record_id else ''}: {self.detail}"


@dataclass(frozen=True)
class Line:
    """A record with the place it was read from."""

    number: int
    record: Record


@dataclass(frozen=True)
class DataSet:
    """An opened data set; splits are read once, when they are asked for."""

    folder: Path
    manifest: Manifest
    max_quarantined: float = MAX_QUARANTINED
    exclude: frozenset[str] = frozenset()
    """Ids of records that a check set aside because of their images; they are left out and counted as such."""
    max_image_pixels: int = MAX_PIXELS
    """Largest width x height in pixels of an image, for whoever decodes one."""
    _cache: dict[str, tuple[list[Line], list[Finding]]] = field(default_factory=dict, repr=False, compare=False)
    _paths: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What it calls itself; its folder's name, if it does not."""
        return str(self.manifest.facts.get("name") or self.folder.name)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted."""
        paths = (Path(entry.path) for entry in self.manifest.files)
        return tuple(sorted(path.stem for path in paths if path.parent.as_posix() == RECORDS and path.suffix == ".jsonl"))

    def records(self, split: str, kinds: Collection[Kind] = ()) -> list[Record]:
        """Good records of a split, in the order of the file; only of `kinds`, if any are given.

        Raises:
            MissingInputError: There is no such split.
            DataError: Too many records are set aside, none is left, or an id stands twice.
        """
        self.scan(split)
        return list(self.stream(split, kinds))

    def stream(self, split: str, kinds: Collection[Kind] = ()) -> Iterator[Record]:
        """As `records`, one by one and not kept; what is wrong with the whole split is raised behind the last of them."""
        total = kept = 0
        findings: list[Finding] = []
        known: Iterable[Line | Finding] = self._lines(split)
        if split in self._cache:
            known = itertools.chain[Line | Finding](*self._cache[split])
        for found in known:
            total += 1
            if isinstance(found, Finding):
                findings.append(found)
            elif found.record.id not in self.exclude:
                kept += 1
                if not kinds or found.record.kind in kinds:
                    yield found.record
        refuse_if_too_many(f"{self.name}/{split_file(split)}", total, kept, self.max_quarantined, findings)

    def scan(self, split: str) -> tuple[list[Line], list[Finding]]:
        """Good records with their lines, and what was set aside; errors as `records`, but no limit on how much is set aside."""
        if split not in self._cache:
            good: list[Line] = []
            findings: list[Finding] = []
            for found in self._lines(split):
                (good if isinstance(found, Line) else findings).append(found)  # type: ignore[arg-type]
            self._cache[split] = good, findings
        return self._cache[split]

    def _lines(self, split: str) -> Iterator[Line | Finding]:
        if split not in self.splits:
            raise MissingInputError(
                f"{self.folder} has no split {split!r}",
                f"it has {', '.join(self.splits) or 'none'}; change `split` in the recipe",
            )
        return _scan(self, split)

    def path(self, relative: str) -> Path:
        """Where a file of the data set lies. RefusedError if the name leaves the folder."""
        # Many records share an image, and resolving a path asks the disk for each of its parts.
        if relative not in self._paths:
            self._paths[relative] = safe_join(self.folder, relative)
        return self._paths[relative]


def open_dataset(
    folder: Path, verify: bool = True, max_quarantined: float = MAX_QUARANTINED, exclude: Collection[str] = ()
) -> DataSet:
    """Open the data set in `folder`.

    Args:
        folder: A data set folder (see model/data/records.py).
        verify: Re-hash every file against the manifest; leave it out only where that has just been done.
        max_quarantined: Largest share of records that may be set aside, 0..1.
        exclude: Ids of records to leave out (`CheckReport.excluded`).

    Raises:
        MissingInputError: No data set there.
        RefusedError: A file was changed, added or removed.
        DataError: The manifest is damaged, or of another kind of artifact.
    """
    manifest = verify_files(folder) if verify else read(folder)
    if manifest.kind != KIND:
        raise DataError(f"{folder} is a {manifest.kind!r} artifact, not a data set", "give the folder of a data set")
    return DataSet(folder, manifest, max_quarantined, frozenset(exclude))


@dataclass(frozen=True)
class Audit:
    """What a check found and what the recipe allows: all who read the data sets of a run open them with the same one."""

    exclude: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Data set -> ids of records to leave out."""
    max_quarantined: float = MAX_QUARANTINED
    max_image_pixels: int = MAX_PIXELS

    def open(self, name: str, folder: Path, verify: bool = True) -> DataSet:
        """The data set `name` of the run; errors as `open_dataset`."""
        opened = open_dataset(folder, verify, self.max_quarantined, self.exclude.get(name, ()))
        return replace(opened, max_image_pixels=self.max_image_pixels)


def file_digests(sets: Iterable[DataSet]) -> Callable[[Path], str]:
    """A function that gives the SHA-256 of a file of these sets, as their manifests say; another file is read."""
    known = {dataset.folder: dataset.manifest.files for dataset in sets}

    def digest(path: Path) -> str:
        folder = next((folder for folder in path.parents if folder in known), None)
        if folder is None:
            return sha256_file(path)
        # The files of a manifest are sorted, folder by folder: no further table of millions of names.
        parts = path.relative_to(folder).parts
        place = bisect_left(known[folder], parts, key=lambda entry: tuple(entry.path.split("/")))
        found = known[folder][place : place + 1]
        return found[0].sha256 if found and found[0].path == "/".join(parts) else sha256_file(path)

    return digest


def split_file(split: str) -> str:
    """Name of a split's file, relative to the data set."""
    return f"{RECORDS}/{split}.jsonl"


def refuse_if_too_many(name: str, total: int, kept: int, limit: float, findings: Sequence[Finding]) -> None:
    """DataError if there is nothing, nothing good, or less good than `limit` allows."""
    if total == 0:
        raise DataError(f"{name} is empty", "import or generate the data set again")
    aside = total - kept
    if kept and aside <= limit * total:
        return
    reasons = ", ".join(f"{count:,} {flaw}" for flaw, count in Counter(finding.flaw for finding in findings).most_common())
    first = f"; the first: {findings[0]}" if findings else ""
    raise DataError(
        f"{name}: {aside:,} of {total:,} records are set aside ({aside / total:.1%}, the limit is {limit:.1%}): "
        f"{reasons or 'excluded by the check'}{first}",
        "mend the records (`biovlm data check NAME` lists all), or raise data.max_quarantined",
    )


def _scan(dataset: DataSet, split: str) -> Iterator[Line | Finding]:
    name = split_file(split)
    listed = frozenset(entry.path for entry in dataset.manifest.files)
    seen = array("q")
    for number, raw in lines(dataset.path(name)):
        record_id = ""
        try:
            record = _record(raw)
            record_id = record.id
            _check_record(dataset, record, listed)
        except FlawError as error:
            yield Finding(error.flaw, name, number, record_id, error.detail)
        else:
            yield Line(number, record)
        if record_id:
            seen.append(_digest(record_id))
    if len(np.unique(np.frombuffer(seen, np.int64) if seen else np.zeros(0))) < len(seen):
        _refuse_double(dataset, name)


def _digest(record_id: str) -> int:
    """Eight bytes that stand for an id, so that a million of them need eight megabytes."""
    return int.from_bytes(hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)


def _refuse_double(dataset: DataSet, name: str) -> None:
    """The letter about an id that stands twice; two ids with one digest, which nobody has seen yet, pass."""
    seen: dict[str, int] = {}
    for number, raw in lines(dataset.path(name)):
        try:
            record_id = _record(raw).id
        except FlawError:
            continue
        if seen.setdefault(record_id, number) != number:
            raise DataError(
                f"{dataset.name}/{name}: the id {record_id!r} stands in line {seen[record_id]} and line {number}",
                "give each record an id of its own",
            )


def _record(raw: bytes | FlawError) -> Record:
    if isinstance(raw, FlawError):
        raise raw
    if not raw.strip():
        raise FlawError(Flaw.BLANK_LINE, "a blank line")
    try:
        value = parse(raw.rstrip())
    except FlawError as error:
        raise FlawError(error.flaw, error.detail.removeprefix("line 1, ")) from None  # the line of the file is said beside it
    if not isinstance(value, dict):
        raise FlawError(Flaw.SCHEMA, f"a {type(value).__name__}, not an object")
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        # Only place and rule: pydantic's input would be the content of the record.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) if first["type"] != "extra_forbidden" else "unknown field"
        raise FlawError(Flaw.SCHEMA, f"{place or 'record'}: {first['msg'].removeprefix('Value error, ')}") from None


def _check_record(dataset: DataSet, record: Record, listed: frozenset[str]) -> None:
    for number, turn in enumerate(record.turns):
        found = reserved.find(turn.text)
        if found is not None:
            raise FlawError(Flaw.RESERVED_TOKEN, f"turn {number} holds the reserved token {found!r}")
    for image in record.images:
        try:
            dataset.path(image)
        except RefusedError:
            raise FlawError(Flaw.UNSAFE_PATH, "an image path leaves the folder of the data set") from None
        if image not in listed:
            raise FlawError(Flaw.IMAGE_MISSING, "an image is not in the manifest of the data set")

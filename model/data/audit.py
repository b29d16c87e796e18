"""What stands in the splits of a run, and whether they know each other.

1. `leakage(splits)` decodes every image and compares the splits pairwise: equal pixels, alike pictures (perceptual hash), and
   shared groups (patient, study or image). It reports counts, never names: a name could be a patient's.
2. `statistics(dataset, split)` counts kinds, answer types and question types, and how far one gets by always giving the most
   frequent answer: the bar that a model has to clear.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from model.config import Kind
from model.data.dataset import DataSet
from model.data.images import MAX_PIXELS, decode, pixel_digest
from model.data.records import Record

MAX_DISTANCE = 4
"""Bits of 64 in which the perceptual hashes of alike pictures may differ."""
ROWS_AT_ONCE = 1024
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Leak:
    """What the split `other` shares with the split `first`."""

    first: str
    other: str
    equal: int
    """Images of `other` whose pixels also stand in `first`."""
    alike: int
    """Further images of `other` that look like one of `first`. A warning: anatomy repeats itself."""
    groups: int
    """Groups in both."""

    def __str__(self) -> str:
        return f"{self.other} shares with {self.first}: {self.equal:,} equal images, {self.alike:,} alike, {self.groups:,} groups"


@dataclass(frozen=True)
class LeakReport:
    """Comparison of every pair of splits."""

    images: dict[str, int]
    """Split -> different images."""
    leaks: tuple[Leak, ...]
    """One for each pair that shares anything."""
    max_distance: int

    @property
    def clean(self) -> bool:
        """No equal image and no shared group. Alike images alone are no proof."""
        return not any(leak.equal or leak.groups for leak in self.leaks)

    def facts(self) -> dict[str, Any]:
        """The report as JSON."""
        return {"images": self.images, "leaks": [asdict(leak) for leak in self.leaks], "max_distance": self.max_distance}

    def lines(self) -> list[str]:
        """The report for people."""
        return [*map(str, self.leaks)] or [f"no image or group is shared by {', '.join(self.images)}"]


def leakage(
    splits: Mapping[str, Collection[Path]],
    groups: Mapping[str, Collection[str]] | None = None,
    max_distance: int = MAX_DISTANCE,
    max_pixels: int = MAX_PIXELS,
) -> LeakReport:
    """Compare splits pairwise.

    Args:
        splits: Name -> image files; a file may be named more than once.
        groups: Name -> groups of its records.
        max_distance: Bits of 64 in which alike pictures may differ.
        max_pixels: Largest width x height of an image in pixels.

    Raises:
        MissingInputError, DataError: An image cannot be read (see model.data.images.decode).
    """
    looked: dict[Path, tuple[str, int]] = {}
    for path in {path for paths in splits.values() for path in paths}:
        image = decode(path, max_pixels)
        looked[path] = (pixel_digest(image), perceptual_hash(image))
    pictures = {name: dict(looked[path] for path in paths) for name, paths in splits.items()}
    leaks = []
    for first, other in combinations(splits, 2):
        equal = pictures[first].keys() & pictures[other].keys()
        rest = [value for digest, value in pictures[other].items() if digest not in equal]
        alike = _count_alike(list(pictures[first].values()), rest, max_distance)
        shared = len(set((groups or {}).get(first, ())) & set((groups or {}).get(other, ())))
        if equal or alike or shared:
            leaks.append(Leak(first, other, len(equal), alike, shared))
    return LeakReport({name: len(found) for name, found in pictures.items()}, tuple(leaks), max_distance)


def images_and_groups(dataset: DataSet, split: str, kinds: Collection[Kind] = ()) -> tuple[set[Path], set[str]]:
    """Image files and groups of a split's records, for `leakage`."""
    records = dataset.records(split, kinds)
    return {dataset.path(image) for record in records for image in record.images}, {record.group for record in records}


def statistics(dataset: DataSet, split: str) -> dict[str, Any]:
    """Counts of a split as JSON.

    `majority` gives, for the questions of each question type, the share that the most frequent answer has (0..1, case ignored).
    """
    records = dataset.records(split)
    questions = [record for record in records if record.kind is Kind.QUESTION]
    return {
        "records": len(records),
        "images": len({image for record in records for image in record.images}),
        "groups": len({record.group for record in records}),
        "kinds": _counted(str(record.kind) for record in records),
        "answer_types": _counted(str(record.answer_type or "none") for record in questions),
        "question_types": _counted(record.question_type or "none" for record in questions),
        "modalities": _counted(record.modality or "none" for record in records),
        "majority": _majority(questions),
        "licence": str(dataset.manifest.facts.get("licence", UNKNOWN_LICENCE)),
        "synthetic": bool(dataset.manifest.facts.get("synthetic", False)),
    }


def perceptual_hash(image: Any) -> int:
    """64 bits: signs of the low frequencies of a picture, nearly the same after scaling or recompression."""
    # Imported here: training needs this module's neighbours and not imagehash.
    import imagehash

    return int(str(imagehash.phash(image)), 16)


def _count_alike(first: Sequence[int], other: Sequence[int], max_distance: int) -> int:
    """How many hashes of `other` are within `max_distance` bits of one of `first`."""
    if not first or not other:
        return 0
    known, asked = np.array(first, np.uint64), np.array(other, np.uint64)
    near = 0
    for start in range(0, len(asked), ROWS_AT_ONCE):
        distance = np.bitwise_count(asked[start : start + ROWS_AT_ONCE, None] ^ known[None, :])
        near += int((distance.min(axis=1) <= max_distance).sum())
    return near


def _majority(questions: Sequence[Record]) -> dict[str, float]:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in questions:
        answers[record.question_type or "none"][record.answer.lower().strip()] += 1
    return {name: round(max(counts.values()) / counts.total(), 4) for name, counts in sorted(answers.items())}


def _counted(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))

"""One pass over a data set before anything learns from it: every record, and every image once.

1. Each split is read strictly (model/data/dataset.py).
2. Each image that a good record names is decoded; a bad one sets all its records aside.
3. The report lists every finding. `refuse()` stops the run (exit 65) when too much is set aside, or too little is left;
   otherwise `excluded` goes to `open_dataset(..., exclude=...)`, so that every later step leaves out the same records.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import Data
from model.data.dataset import DataSet, Finding, Line, open_dataset, refuse_if_too_many, split_file
from model.data.images import ImageFormatError, ImageTooLargeError, decode, pixel_digest
from model.data.strict_json import Flaw
from model.errors import BiovlmError, DataError, MissingInputError


@dataclass(frozen=True)
class CheckReport:
    """What one pass found."""

    name: str
    """Of the data set."""
    max_quarantined: float
    records: dict[str, int] = field(default_factory=dict)
    """Split -> lines in its file, good and bad."""
    kept: dict[str, int] = field(default_factory=dict)
    """Split -> good records."""
    findings: list[Finding] = field(default_factory=list)
    """Everything set aside, in the order of splits and lines."""
    pixels: dict[str, str] = field(default_factory=dict)
    """Image path, relative to the data set -> digest of its pixels, for every image that could be decoded."""

    @property
    def ok(self) -> bool:
        """Nothing is set aside."""
        return not self.findings and all(self.kept.values())

    @property
    def excluded(self) -> list[str]:
        """Ids of records that are well-formed but whose images are not, sorted: for `open_dataset(exclude=...)`."""
        return sorted({finding.record_id for finding in self.findings if finding.flaw in _IMAGE_FLAWS})

    def refuse(self) -> None:
        """DataError if there is no split or an empty one, or more of one is set aside than the limit allows."""
        if not self.records:
            raise DataError(f"{self.name} has no records: no file {split_file('...')}", "import or generate the data set again")
        for split, total in self.records.items():
            name = split_file(split)
            here = [finding for finding in self.findings if finding.file == name]
            refuse_if_too_many(f"{self.name}/{name}", total, self.kept[split], self.max_quarantined, here)

    def facts(self) -> dict[str, Any]:
        """The report as JSON, without the digests of pixels."""
        return {
            "records": self.records,
            "kept": self.kept,
            "images": len(self.pixels),
            "set_aside": {str(flaw): count for flaw, count in sorted(Counter(f.flaw for f in self.findings).items())},
            "findings": [{**vars(finding), "flaw": str(finding.flaw)} for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """The report for people: one line a split, then one line a finding."""
        result = [
            f"{split}: {self.kept[split]:,} of {total:,} records good" + ("" if total else " (empty)")
            for split, total in self.records.items()
        ]
        return [*result, f"images decoded: {len(self.pixels):,}", *map(str, self.findings)]


_IMAGE_FLAWS = frozenset({Flaw.IMAGE_MISSING, Flaw.IMAGE_BROKEN, Flaw.IMAGE_FORMAT, Flaw.IMAGE_TOO_LARGE})


def check(source: Path | DataSet, data: Data) -> CheckReport:
    """Read every record and decode every image of a data set.

    Args:
        source: The folder (its files are then verified), or an opened data set.
        data: Limits: `max_quarantined` and `max_image_pixels`.

    Raises:
        MissingInputError, RefusedError, DataError: The folder is not a data set that can be read at all, or an id stands twice.
    """
    dataset = source if isinstance(source, DataSet) else open_dataset(source)
    report = CheckReport(dataset.name, data.max_quarantined)
    bad: dict[str, tuple[Flaw, str]] = {}
    for split in dataset.splits:
        found, findings = dataset.scan(split)
        report.records[split] = len(found) + len(findings)
        for line in found:
            for image in line.record.images:
                if image not in report.pixels and image not in bad:
                    _look_at(dataset, image, data.max_image_pixels, report.pixels, bad)
        with_bad_image = [finding for line in found if (finding := _of_image(line, split, bad)) is not None]
        report.kept[split] = len(found) - len(with_bad_image)
        report.findings.extend(sorted([*findings, *with_bad_image], key=lambda finding: finding.line))
    return report


def _look_at(dataset: DataSet, image: str, max_pixels: int, pixels: dict[str, str], bad: dict[str, tuple[Flaw, str]]) -> None:
    """Decode one image; its digest goes to `pixels`, or its flaw to `bad`."""
    try:
        pixels[image] = pixel_digest(decode(dataset.path(image), max_pixels))
    except ImageTooLargeError as error:
        bad[image] = (Flaw.IMAGE_TOO_LARGE, _detail(error, dataset))
    except ImageFormatError as error:
        bad[image] = (Flaw.IMAGE_FORMAT, _detail(error, dataset))
    except MissingInputError as error:
        bad[image] = (Flaw.IMAGE_MISSING, _detail(error, dataset))
    except DataError as error:
        bad[image] = (Flaw.IMAGE_BROKEN, _detail(error, dataset))


def _detail(error: BiovlmError, dataset: DataSet) -> str:
    """The message with the image's name relative to the data set."""
    return error.message.replace(f"{dataset.folder}/", "")


def _of_image(line: Line, split: str, bad: dict[str, tuple[Flaw, str]]) -> Finding | None:
    """The finding for the first bad image of a record."""
    for image in line.record.images:
        if image in bad:
            flaw, detail = bad[image]
            return Finding(flaw, split_file(split), line.number, line.record.id, detail)
    return None

"""What an import of VQA-RAD read, mended, set aside and wrote: for people, and as facts of the data set's manifest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ImportReport:
    """What an import read, mended, set aside and wrote."""

    rows: int = 0
    """Published rows read."""
    images: int = 0
    """Images that could be read and have a question."""
    images_without_questions: int = 0
    held_out_images: int = 0
    test_questions_in_train: int = 0
    """Rows of `test` whose question about the same image stands word for word in `train_official`, as published."""
    closed_beyond_yes_no: int = 0
    """Closed questions whose answer is another than yes or no: left as they are."""
    repairs: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Split -> images, records, by_kind."""

    def facts(self) -> dict[str, Any]:
        """The report as JSON: the facts of the data set's manifest."""
        counted = (
            "rows",
            "images",
            "images_without_questions",
            "held_out_images",
            "test_questions_in_train",
            "closed_beyond_yes_no",
        )
        return {
            "source": {name: getattr(self, name) for name in counted},
            "repairs": _plain(self.repairs),
            "set_aside": _plain(self.set_aside),
            "splits": self.splits,
        }

    def lines(self) -> list[str]:
        """The report for people."""

        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count:,} {reason}" for reason, count in _plain(counts).items()) or "none"

        return [
            f"{self.rows:,} rows about {self.images:,} images ({self.images_without_questions:,} more images without a question)",
            f"mended: {listed(self.repairs)}",
            f"set aside: {listed(self.set_aside)}",
            f"held out of `train`: {self.held_out_images:,} images",
            *(f"{name}: {split['records']:,} records about {split['images']:,} images" for name, split in self.splits.items()),
        ]


def _plain(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): count for reason, count in sorted(counts.items()) if count}

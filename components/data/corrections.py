"""Corrections become a data set: the questions that people corrected, with the answers that they gave.

1. Of every correction that names a right answer, the record is looked for among those that training reads. One of a test split is never
   taken: it would be learned by heart. One whose record is unknown, or asks for no answer, is counted and left out.
2. The record is written again with the new answer, under the id of the correction, with its image and in its group, so that the audit
   of leakage sees patients and images as before. Licences are those of the sets that the records come from.
3. The registry keeps it like any other set (`Registry.add`): equal corrections are the same version.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.registry import Materialised, Registry
from components.platform.retraining.feedback import Correction, Problem
from components.platform.settings import Settings
from model import manifest
from model.config import DataSlice, Kind
from model.data.records import Record
from model.errors import DataError

ANSWERED = frozenset({Problem.WRONG_ANSWER, Problem.WRONG_REFERENCE})
"""Problems that an answer mends."""


@dataclass(frozen=True)
class Taken:
    """What became of the lines."""

    learned: int
    left_out: int
    """They name no answer, or no question that training reads."""


def take(found: Iterable[Correction], name: str, wanted: DataSlice, registry: Registry, settings: Settings) -> Taken:
    """Make the data set `name` of the registry from corrections.

    Args:
        found: All corrections, old and new.
        name: Of the data set.
        wanted: What the data step would see: which splits of which sets training reads.
        registry: The data registry; one that is only followed refuses.
        settings: Where the store is.

    Raises:
        DataError: Not one of them can be learned from. Others as `Registry.materialise` and `Registry.add`.
    """
    lines = list(found)
    mending = [one for one in lines if one.problem in ANSWERED and one.answer.strip() and one.set != name]
    laid = {
        one: registry.materialise([one], wanted.data.sets[one].revision, settings.store)[one]
        for one in sorted({correction.set for correction in mending} & wanted.data.sets.keys())
    }
    records = _training(wanted, laid)
    newest = {(one.set, one.record): one for one in mending}  # of two about one record, the later
    pairs = [(one, records[place]) for place, one in newest.items() if place in records]
    if not pairs:
        raise DataError(
            f"of {len(lines)} corrections none names a question that training reads, and its answer",
            "they name sets and records of the recipe's training splits; `answer` is what would be right",
        )
    registry.add(name, lambda folder: _write(folder, name, pairs, laid), f"{len(pairs)} corrections")
    return Taken(len(pairs), len(lines) - len(pairs))


def _training(wanted: DataSlice, laid: Mapping[str, Materialised]) -> dict[tuple[str, str], Record]:
    """(set, record id) -> question that training reads and no benchmark asks."""
    from model.data.dataset import open_dataset

    asked = {(benchmark.set, benchmark.split) for benchmark in wanted.evaluated}
    used = {(mixture.set, mixture.split) for mixture in wanted.uses} - asked
    return {
        (name, record.id): record
        for name, split in sorted(used)
        if name in laid
        for record in open_dataset(laid[name].path, verify=False).stream(split)  # materialising has just hashed it
        if record.kind is Kind.QUESTION and len(record.turns) == 2
    }


def _write(folder: Path, name: str, pairs: list[tuple[Correction, Record]], laid: Mapping[str, Materialised]) -> None:
    licences = sorted({str(laid[one.set].manifest.facts.get("licence", "unknown")) for one, _ in pairs})
    counts: Counter[str] = Counter(str(record.kind) for _, record in pairs)
    facts: dict[str, Any] = {
        "name": name,
        "licence": " AND ".join(licences),
        "synthetic": all(laid[one.set].manifest.facts.get("synthetic", False) for one, _ in pairs),
        "splits": {"train": {"records": len(pairs), "by_kind": dict(counts)}},
        "source": {one.set: laid[one.set].digest for one, _ in pairs},
    }
    with manifest.commit(folder, "data", facts=facts) as aside:
        (aside / "records").mkdir()
        lines = [_mended(aside, one, record, laid[one.set].path).model_dump_json() for one, record in pairs]
        (aside / "records" / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _mended(aside: Path, correction: Correction, record: Record, source: Path) -> Record:
    """The record with the right answer; its images are copied under the digest of their bytes."""
    images = []
    for image in record.images:
        original = manifest.safe_join(source, image)
        here = Path("images", f"{manifest.sha256_file(original)}{original.suffix}")  # names of two sets may be the same
        (aside / here).parent.mkdir(exist_ok=True)
        shutil.copyfile(original, aside / here)
        images.append(here.as_posix())
    turns = (record.turns[0], record.turns[1].model_copy(update={"text": correction.answer.strip()}))
    return record.model_copy(update={"id": f"correction-{correction.id}", "images": tuple(images), "turns": turns})

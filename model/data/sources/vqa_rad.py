"""VQA-RAD: 315 radiographs, CTs and MRs with 2,248 questions by clinicians (Lau et al., Scientific Data 2018; CC0 1.0).

The journey of an import:
1. `trainset.json` and `testset.json`, the split that everyone reports on, are read if they are there; otherwise the split is made
   from the phrase types of `VQA_RAD Dataset Public.json`.
2. Every row is mended or set aside, and counted (model/data/sources/vqa_rad_rows.py). Every image is decoded once; a row whose
   image cannot be read is set aside.
3. In the usual split, every test image also stands in the training split. So 30 % of the test images are held out, chosen by the
   hash of their pixels: `test_disjoint` asks about them, and `train` knows nothing of them.
4. The data set is written: records, the images' bytes as they are, and a manifest with all counts.

Splits: `train_official` and `test` as published; `train` = `train_official` without the held-out images; `test_disjoint` = the
rows of `test` about the held-out images. Report both tests: only the second one measures answers about images never seen.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import Kind
from model.data.images import decode, pixel_digest
from model.data.records import AnswerType, Record, Role, Turn
from model.data.sources.vqa_rad_report import ImportReport
from model.data.sources.vqa_rad_rows import Aside, Repair, Row, SetAside, read_row
from model.data.strict_json import read_document
from model.errors import BiovlmError, DataError, MissingInputError, RefusedError
from model.manifest import canonical_json, commit, safe_join

NAME = "vqa-rad"
VERSION = "1"
LICENCE = "CC0-1.0"
PUBLIC = "VQA_RAD Dataset Public.json"
TRAIN, TEST = "trainset.json", "testset.json"
IMAGES = "VQA_RAD Image Folder"
HELD_OUT = 0.3
"""Share of the test images that `train` never sees."""
MAX_DIALOGUE_PAIRS = 12
DESCRIPTION = (
    "Radiology images with clinicians' questions and answers. `modality` holds the organ (head, chest, abd), since VQA-RAD"
    " does not say the modality. Images of `test` also stand in `train_official`, as published; `test_disjoint` shares none with"
    " `train`."
)


def import_vqa_rad(source: Path, final: Path) -> ImportReport:
    """Read the published files in `source` and write the data set `final`.

    Raises:
        MissingInputError: The folder lacks the questions or the images.
        DataError: A file is not JSON (file and line are named), or no row can be used.
        CannotWriteError: The disk is full or does not take writes.
    """
    report = ImportReport()
    train, test = _read(source, report)
    digests = _look_at_images(source / IMAGES, [*train, *test], report)
    train, test = ([row for row in rows if row.image in digests] for rows in (train, test))
    if not train or not test:
        raise DataError(
            f"{source}: {len(train):,} training rows and {len(test):,} test rows can be used",
            "the files are not those of VQA-RAD, or its images are missing: " + "; ".join(report.lines()[2:3]),
        )
    held_out = _held_out({digests[row.image] for row in test})
    report.images, report.held_out_images = len(digests), len(held_out)
    _count(train, test, report)
    splits = {
        "train": [row for row in train if digests[row.image] not in held_out],
        "train_official": train,
        "test": test,
        "test_disjoint": [row for row in test if digests[row.image] in held_out],
    }
    _write(source / IMAGES, final, splits, digests, report)
    return report


def _read(source: Path, report: ImportReport) -> tuple[list[Row], list[Row]]:
    """Training and test rows of the usual split, or of one made from the phrase types."""
    there = [name for name in (TRAIN, TEST) if (source / name).is_file()]
    if len(there) == 1:
        raise MissingInputError(
            f"{source} has {there[0]} but not its other half", "fetch both, or remove it to use the public file alone"
        )
    if there:
        train, test = (list(_rows(source / name, report)) for name in (TRAIN, TEST))
        return train, test
    public = list(_rows(source / PUBLIC, report))
    train = [row for row in public if not row.for_test]
    # Frames of test rows stay out: they are the test questions in other words.
    frames = [
        Row(**{**vars(row), "qid": f"{row.qid}-frame", "question": row.frame, "phrase": "frame", "frame": ""})
        for row in train
        if row.frame and row.frame.lower() != row.question.lower()
    ]
    report.repairs[Repair.FRAME_ADDED] += len(frames)
    return train + frames, [row for row in public if row.for_test]


def _rows(path: Path, report: ImportReport) -> Iterator[Row]:
    """Good rows of one file, each with an id of its own."""
    published = read_document(path)
    if not isinstance(published, list):
        raise DataError(f"{path} holds a {type(published).__name__}, not a list of questions", "fetch the file again")
    seen: Counter[str] = Counter()
    for position, raw in enumerate(published):
        report.rows += 1
        try:
            row = read_row(raw, position, report.repairs)
            _record("check", row, row.image)
        except SetAside as aside:
            report.set_aside[aside.reason] += 1
            continue
        seen[row.qid] += 1
        if seen[row.qid] > 1:
            report.repairs[Repair.QID_REPEATED] += 1
            row = Row(**{**vars(row), "qid": f"{row.qid}-{seen[row.qid]}"})
        yield row


def _look_at_images(folder: Path, rows: Sequence[Row], report: ImportReport) -> dict[str, str]:
    """Name of each image that a row names and that can be read -> digest of its pixels; rows of others are counted."""
    if not folder.is_dir():
        raise MissingInputError(f"no folder {folder}", "unpack the images beside the questions")
    asked = Counter(row.image for row in rows)
    digests: dict[str, str] = {}
    for image, count in sorted(asked.items()):
        try:
            digests[image] = pixel_digest(decode(safe_join(folder, image)))
        except RefusedError:
            report.set_aside[Aside.UNSAFE_PATH] += count
        except MissingInputError:
            report.set_aside[Aside.IMAGE_MISSING] += count
        except (BiovlmError, OSError, ValueError):
            report.set_aside[Aside.IMAGE_UNREADABLE] += count
    report.images_without_questions = sum(path.name not in asked for path in folder.iterdir() if path.is_file())
    return digests


def _held_out(digests: set[str]) -> frozenset[str]:
    """`HELD_OUT` of the pictures, at least one, by a hash of their pixels: the same ones on every machine and in every order."""
    order = sorted(digests, key=lambda digest: hashlib.sha256(f"{NAME} test_disjoint {digest}".encode()).hexdigest())
    return frozenset(order[: max(1, round(HELD_OUT * len(order)))])


def _count(train: Sequence[Row], test: Sequence[Row], report: ImportReport) -> None:
    """What a reader of results should know about the published split."""
    learned = {(row.image, row.question.lower()) for row in train}
    report.test_questions_in_train = sum((row.image, row.question.lower()) in learned for row in test)
    closed = [row.answer.lower() for row in (*train, *test) if row.answer_type is AnswerType.CLOSED]
    report.closed_beyond_yes_no = sum(answer not in ("yes", "no") for answer in closed)


def _write(images: Path, final: Path, splits: dict[str, list[Row]], digests: dict[str, str], report: ImportReport) -> None:
    """The data set: images as they are, and one file of records a split."""
    # One group for all files with the same pixels, named after the first of them.
    groups = {image: min(other for other in digests if digests[other] == digest) for image, digest in digests.items()}
    facts: dict[str, Any] = {"name": NAME, "version": VERSION, "licence": LICENCE, "synthetic": False, "description": DESCRIPTION}
    with commit(final, kind="data", facts=facts) as folder:
        for image in sorted(digests):
            copy = folder / "images" / image
            copy.parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(images / image, copy)
        (folder / "records").mkdir()
        for split, rows in splits.items():
            _write_split(folder, split, rows, groups, report)
        facts.update(report.facts())


def _write_split(folder: Path, split: str, rows: Sequence[Row], groups: dict[str, str], report: ImportReport) -> None:
    """One question record a row, and for training one dialogue an image from its freeform questions."""
    records = [_record(split, row, groups[row.image]) for row in rows]
    if split.startswith("train"):
        records += _dialogues(split, rows, groups)
    with (folder / "records" / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(canonical_json(record.model_dump(mode="json")) + "\n" for record in records)
    by_kind = Counter(str(record.kind) for record in records)
    images = len({record.group for record in records})
    report.splits[split] = {"images": images, "records": len(records), "by_kind": dict(sorted(by_kind.items()))}


def _record(split: str, row: Row, group: str) -> Record:
    try:
        return Record(
            id=f"{split}-{row.qid}",
            group=group,
            kind=Kind.QUESTION,
            images=(f"images/{row.image}",),
            turns=_turns([row]),
            answer_type=row.answer_type,
            question_type=row.question_type,
            modality=row.organ,
            source=NAME,
        )
    except ValidationError:
        # All else is checked before; only a length can be wrong here.
        raise SetAside(Aside.TEXT_TOO_LONG) from None


def _dialogues(split: str, rows: Sequence[Row], groups: dict[str, str]) -> Iterator[Record]:
    """Dialogues of at least two questions, of at most `MAX_DIALOGUE_PAIRS`; no summary is invented."""
    by_image: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.phrase == "freeform":
            by_image[row.image].setdefault(row.question.lower(), row)
    for image, asked in sorted(by_image.items()):
        if len(asked) > 1:
            chosen = list(asked.values())[:MAX_DIALOGUE_PAIRS]
            yield Record(
                id=f"{split}-dialogue-{image}",
                group=groups[image],
                kind=Kind.DIALOGUE,
                images=(f"images/{image}",),
                turns=_turns(chosen),
                modality=chosen[0].organ,
                source=NAME,
            )


def _turns(rows: Sequence[Row]) -> tuple[Turn, ...]:
    return tuple(
        turn for row in rows for turn in (Turn(role=Role.USER, text=row.question), Turn(role=Role.ASSISTANT, text=row.answer))
    )

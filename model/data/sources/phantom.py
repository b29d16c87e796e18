"""The demo data set: synthetic images that look like five modalities, with everything that can be said about them.

`python -m model.data.sources.phantom --out DIR` draws it. Same numbers, same seed, same bytes, on every machine: pictures are
uncompressed BMP, JSON is canonical, and drawing uses integers only. It is in the public domain (CC0-1.0) and shows nobody.

Beside `records/` and `images/` (see model/data/records.py) stands `masks/<group>.bmp`: labels 0 outside, 1 organ, 2, 3, 4 the
lesions in reading order of their places.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model.data.records import Kind, Record, Role, Turn
from model.data.sources import phantom_text as text
from model.data.sources.phantom_draw import draw
from model.data.sources.phantom_facts import Dice, Facts, Split, draw_facts
from model.errors import InternalError, UsageError
from model.manifest import canonical_json, commit

NAME = "phantom"
VERSION = "1"
DEFAULT_SEED = 7
DEFAULT_COUNTS = {Split.TRAIN: 2400, Split.VALIDATION: 100, Split.TEST: 120}
LICENCE_TEXT = """CC0 1.0 Universal (https://creativecommons.org/publicdomain/zero/1.0/)

These images, masks and texts were drawn by a program (biovlm, model/data/sources/phantom.py). They are synthetic: they show no
patient and no specimen, and are of no diagnostic value. As far as the law allows, all rights to them are waived.
"""


def write_phantom(out: Path, counts: dict[Split, int], seed: int = DEFAULT_SEED) -> None:
    """Draw the data set into the artifact folder `out`.

    Args:
        out: Folder to make or replace.
        counts: Number of images of each split.
        seed: Whole number from 0; other seeds give other images of the same distribution.

    Raises:
        UsageError: A negative count or seed.
        CannotWriteError: The disk is full or does not take writes.
    """
    if seed < 0 or any(count < 0 for count in counts.values()):
        raise UsageError("the phantom needs counts and a seed that are 0 or more")
    splits: dict[str, Any] = {}
    facts = {
        "name": NAME,
        "version": VERSION,
        "licence": "CC0-1.0",
        "synthetic": True,
        "description": "Drawn images in the style of CT, MR, X-ray, ultrasound and histology, with captions, questions and boxes.",
        "seed": seed,
        "splits": splits,
    }
    seen: dict[bytes, str] = {}
    with commit(out, kind="data", facts=facts) as folder:
        for name in ("images", "masks", "records"):
            (folder / name).mkdir()
        (folder / "LICENSE").write_bytes(LICENCE_TEXT.encode())
        for split, count in sorted(counts.items()):
            splits[split.label] = _write_split(folder, split, count, seed, seen)


def _write_split(folder: Path, split: Split, count: int, seed: int, seen: dict[bytes, str]) -> dict[str, Any]:
    """Write one split; `seen` maps the pixels of every image so far to its group. Returns the split's counts."""
    kinds: Counter[str] = Counter()
    with open(folder / "records" / f"{split.label}.jsonl", "w", encoding="utf-8", newline="\n") as lines:
        for index in range(count):
            group = f"{split.label}-{index:05d}"
            # One stream for picture and one for words: a new template does not change any picture.
            facts = draw_facts(index, Dice(seed, split, index, 0))
            picture, mask = draw(facts, Dice(seed, split, index, 1))
            twin = seen.setdefault(hashlib.sha256(picture.tobytes()).digest(), group)
            if twin != group:
                raise InternalError(f"images {twin} and {group} are equal", "choose another seed")
            (folder / "images" / f"{group}.bmp").write_bytes(bmp(picture))
            (folder / "masks" / f"{group}.bmp").write_bytes(bmp(mask))
            for record in describe(group, facts, mask, Dice(seed, split, index, 2)):
                kinds[record.kind] += 1
                lines.write(canonical_json(record.model_dump(mode="json")) + "\n")
    return {"images": count, "records": sum(kinds.values()), "by_kind": dict(sorted(kinds.items()))}


def describe(group: str, facts: Facts, mask: np.ndarray, dice: Dice) -> Iterator[Record]:
    """All records of one image: caption, dialogue, single questions, grounding."""
    common: dict[str, Any] = {"group": group, "images": (f"images/{group}.bmp",), "modality": facts.modality, "source": NAME}
    caption = _turns((dice.choose(text.ASK_CAPTION), text.caption(facts, dice)))
    yield Record(id=f"{group}-caption", kind=Kind.CAPTION, turns=caption, **common)
    asked = text.questions(facts, dice)
    pairs = [(question.text, question.answer) for question in asked]
    closing = (dice.choose(text.ASK_SUMMARY), text.summary(facts))
    yield Record(id=f"{group}-dialogue", kind=Kind.DIALOGUE, turns=_turns(*pairs, closing), **common)
    for question in asked:
        yield Record(
            id=f"{group}-{question.type}",
            kind=Kind.QUESTION,
            turns=_turns((question.text, question.answer)),
            answer_type=question.answer_type,
            question_type=question.type,
            **common,
        )
    boxes = text.lesion_boxes(mask, len(facts.places))
    for name, pair in zip(("boxes", "region"), text.groundings(facts, boxes, dice), strict=False):
        yield Record(id=f"{group}-{name}", kind=Kind.GROUNDING, turns=_turns(pair), **common)


def _turns(*pairs: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(
        turn
        for question, answer in pairs
        for turn in (Turn(role=Role.USER, text=question), Turn(role=Role.ASSISTANT, text=answer))
    )


def bmp(pixels: np.ndarray) -> bytes:
    """An uncompressed BMP file of uint8 pixels, (height, width) grey or (height, width, 3) red-green-blue.

    Written by hand because an image library is free to change its header from one version to the next.
    """
    height, width = pixels.shape[:2]
    grey = pixels.ndim == 2
    rows = pixels[::-1] if grey else pixels[::-1, :, ::-1]  # from the bottom up, and blue first
    padded = np.pad(rows.reshape(height, -1), ((0, 0), (0, -rows[0].size % 4)))
    palette = bytes(value for level in range(256) for value in (level, level, level, 0)) if grey else b""
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8 if grey else 24, 0, padded.size, 0, 0, 256 if grey else 0, 0)
    return b"BM" + struct.pack("<IHHI", start + padded.size, 0, 0, start) + info + palette + padded.tobytes()


def main() -> None:
    """Draw the data set from the command line."""
    parser = argparse.ArgumentParser(prog="python -m model.data.sources.phantom", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="artifact folder to make or replace")
    for split, count in DEFAULT_COUNTS.items():
        parser.add_argument(f"--{split.label}", type=int, default=count, metavar="N", help=f"images (default {count})")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help=f"whole number (default {DEFAULT_SEED})")
    options = parser.parse_args()
    write_phantom(options.out, {split: getattr(options, split.label) for split in Split}, options.seed)


if __name__ == "__main__":
    main()

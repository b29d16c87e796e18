"""What is trained on: the same documents as a data set of ours and as a list for the peers.

    c1          one caption an image, about 85 tokens of text, 60 of them supervised
    slake_like  11 short questions an image
    vqa_rad     the real one, about 7 questions an image, from the folder that `BIOVLM_VQA_RAD` names

Every workload comes in two sizes, by whole images; costs are slopes between them, so what a run costs once cancels out.
Texts of the first two are drawn from word lists, their images are drawn noise of 512 x 512 as PNG: speed does not look at meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from model import manifest
from model.config import Kind
from model.data.loading import open_dataset
from model.data.records import Record, Role, Turn
from model.data.sources.vqa_rad import import_vqa_rad

NAMES = ("c1", "vqa_rad", "slake_like")
VQA_RAD = "BIOVLM_VQA_RAD"
SLAKE_QUESTIONS = 11
WORDS = (
    "the", "left", "right", "upper", "lower", "lobe", "shows", "a", "large", "small", "bright", "dark", "lesion", "nodule", "opacity",
    "effusion", "with", "without", "clear", "margin", "near", "heart", "lung", "liver", "kidney", "contrast", "no", "fracture", "seen",
    "and", "stable", "since", "prior", "study", "is", "there", "in", "this", "image", "what", "where",
)  # fmt: skip


class MissingDataError(Exception):
    """A workload cannot be had here; the text says what to set."""


@dataclass(frozen=True)
class Document:
    """One question with its answer about one image."""

    id: str
    image: str
    question: str
    answer: str


@dataclass(frozen=True)
class Sized:
    """One size of a workload."""

    documents: int
    images: int
    listed: Path
    """JSON lines of documents, for the peers."""
    dataset: Path
    """The same as a data set folder."""


def texts() -> list[str]:
    """What the tokenizer of the models learns its merges from."""
    rng = np.random.default_rng(0)
    return [_sentence(rng, 12) for _ in range(400)]


def make(name: str, folder: Path, images: Sequence[int]) -> list[Sized]:
    """The workload in sizes of so many images each, the small ones beginnings of the large ones.

    Raises:
        MissingDataError: Its data is not here.
    """
    pool = folder / "images"
    pool.mkdir(parents=True, exist_ok=True)
    drawn = list(_vqa_rad(folder) if name == "vqa_rad" else _drawn(name, pool, max(images)))
    by_image = [list(group) for _, group in groupby(sorted(drawn, key=lambda d: (d.image, d.id)), key=lambda d: d.image)]
    return [_write(folder / f"{count}", [d for group in by_image[:count] for d in group], count) for count in images]


def _drawn(name: str, pool: Path, count: int) -> Iterator[Document]:
    rng = np.random.default_rng(1 if name == "c1" else 2)
    for number in range(count):
        path = pool / f"{number:04d}.png"
        coarse = Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
        if not path.is_file():
            coarse.save(path)
        if name == "c1":
            yield Document(f"{number:04d}-0", str(path), _sentence(rng, 14), _sentence(rng, 55))
            continue
        for question in range(SLAKE_QUESTIONS):
            yield Document(f"{number:04d}-{question:02d}", str(path), _sentence(rng, 9), _sentence(rng, 1 + question % 3))


def _sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words).tolist())


def _vqa_rad(folder: Path) -> Iterator[Document]:
    source = os.environ.get(VQA_RAD)
    if not source or not Path(source).is_dir():
        raise MissingDataError(f"VQA-RAD is not here: set {VQA_RAD} to the folder of its published files")
    final = folder / "imported"
    if not (final / manifest.FILE_NAME).is_file():
        import_vqa_rad(Path(source), final)
    dataset = open_dataset(final, verify=False)
    for record in dataset.records("train", (Kind.QUESTION,)):
        question, answer = (turn.text.strip() for turn in record.turns)
        yield Document(record.id, str(dataset.path(record.images[0])), question, answer)


def _write(folder: Path, documents: Sequence[Document], images: int) -> Sized:
    listed, dataset = folder / "documents.jsonl", folder / "dataset"
    folder.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(json.dumps(vars(document)) + "\n" for document in documents))
    with manifest.commit(dataset, kind="data", facts={"name": "bench", "synthetic": True}) as aside:
        (aside / "records").mkdir()
        (aside / "images").mkdir()
        for path in sorted({document.image for document in documents}):
            (aside / "images" / Path(path).name).write_bytes(Path(path).read_bytes())
        lines = (_record(document).model_dump_json() + "\n" for document in documents)
        (aside / "records" / "train.jsonl").write_text("".join(lines))
    return Sized(len(documents), images, listed, dataset)


def _record(document: Document) -> Record:
    name = Path(document.image).name
    turns = (Turn(role=Role.USER, text=document.question), Turn(role=Role.ASSISTANT, text=document.answer))
    return Record(id=document.id, group=name, kind=Kind.QUESTION, images=(f"images/{name}",), turns=turns)

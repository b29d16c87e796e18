"""The phantom data set: the same bytes everywhere, words that agree with pictures, and questions that cannot be guessed."""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import manifest
from model.data import reserved
from model.data.loading import open_dataset
from model.data.records import AnswerType, Kind, Record
from model.data.sources.phantom import bmp, main, write_phantom
from model.data.sources.phantom_draw import SCENES_DRAWN, draw
from model.data.sources.phantom_facts import NUMBERS, SCENES, Dice, Facts, Split, draw_facts
from model.data.sources.phantom_text import questions
from model.errors import UsageError

COUNTS = {Split.TRAIN: 40, Split.VALIDATION: 10, Split.TEST: 20}
# Changes only together with `VERSION` of the phantom: pictures or words are then others, and so are all results on them.
PINNED = "e63fc22dd881"
BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(folder, COUNTS)
    return folder


def records(folder: Path, split: str) -> list[Record]:
    return open_dataset(folder, verify=False).records(split)


def mask_of(folder: Path, record: Record) -> np.ndarray:
    return np.asarray(Image.open(folder / "masks" / f"{record.group}.bmp"))


def test_the_same_seed_gives_the_pinned_bytes(phantom: Path) -> None:
    assert manifest.verify(phantom).digest.startswith(PINNED)


def test_another_seed_gives_other_images(phantom: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "other", {Split.TRAIN: 2}, seed=8)
    name = "images/train-00000.bmp"
    assert (tmp_path / "other" / name).read_bytes() != (phantom / name).read_bytes()


def test_the_manifest_names_licence_and_counts(phantom: Path) -> None:
    facts = manifest.read(phantom).facts
    assert (facts["licence"], facts["synthetic"]) == ("CC0-1.0", True)
    for split in COUNTS:
        counted = Counter(str(record.kind) for record in records(phantom, split.label))
        assert facts["splits"][split.label]["by_kind"] == dict(counted)
        assert facts["splits"][split.label]["images"] == COUNTS[split]


def test_no_image_of_one_split_stands_in_another(phantom: Path) -> None:
    where = defaultdict(set)
    for path in (phantom / "images").iterdir():
        where[Image.open(path).tobytes()].add(path.name.split("-")[0])
    assert len(where) == sum(COUNTS.values())
    assert all(len(splits) == 1 for splits in where.values())


def test_every_record_is_read_without_complaint_and_holds_no_control_token(phantom: Path) -> None:
    dataset = open_dataset(phantom)
    for split in dataset.splits:
        good, findings = dataset.scan(split)
        assert good
        assert not findings
        assert not any(reserved.find(turn.text) for line in good for turn in line.record.turns)


def test_every_image_has_caption_dialogue_and_questions(phantom: Path) -> None:
    kinds = defaultdict(Counter)
    for record in records(phantom, "train"):
        kinds[record.group][record.kind] += 1
    assert all(found[Kind.CAPTION] == found[Kind.DIALOGUE] == 1 and found[Kind.QUESTION] >= 3 for found in kinds.values())


def test_a_dialogue_asks_the_single_questions_and_ends_with_a_summary(phantom: Path) -> None:
    found = records(phantom, "train")
    asked = defaultdict(set)
    for record in found:
        if record.kind is Kind.QUESTION:
            asked[record.group].add((record.question, record.answer))
    for record in found:
        if record.kind is Kind.DIALOGUE:
            pairs = [(q.text, a.text) for q, a in zip(record.turns[::2], record.turns[1::2], strict=True)]
            assert set(pairs[:-1]) == asked[record.group]
            assert "lesion" in pairs[-1][1]


def test_masks_agree_with_the_stated_counts(phantom: Path) -> None:
    counts = [record for record in records(phantom, "train") if record.question_type == "count"]
    assert len(counts) == COUNTS[Split.TRAIN]
    for record in counts:
        labels = set(np.unique(mask_of(phantom, record)).tolist())
        lesions = NUMBERS.index(record.answer)
        assert labels - {0, 1} == set(range(2, 2 + lesions))


def test_boxes_are_the_tightest_around_the_lesions_of_the_mask(phantom: Path) -> None:
    boxed = [record for record in records(phantom, "train") if record.id.endswith("-boxes")]
    assert boxed
    for record in boxed:
        mask = mask_of(phantom, record)
        expected = []
        for label in range(2, int(mask.max()) + 1):
            rows, columns = np.nonzero(mask == label)
            corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            expected.append(tuple(int(corner) * 1000 // 64 for corner in corners))
        assert [tuple(map(int, box)) for box in BOX.findall(record.answer)] == expected


def test_lesions_never_touch_and_lie_in_their_quarter() -> None:
    for index in range(60):
        facts = draw_facts(index, Dice(1, index))
        _, mask = draw(facts, Dice(2, index))
        for label, place in enumerate(facts.places, start=2):
            rows, columns = np.nonzero(mask == label)
            assert ("upper" in place) == (rows.mean() < 32)
            assert ("left" in place) == (columns.mean() < 32)
            around = np.zeros_like(mask)
            around[max(0, rows.min() - 1) : rows.max() + 2, max(0, columns.min() - 1) : columns.max() + 2] = 1
            grown = np.zeros(mask.shape, bool)
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                grown |= np.roll(mask == label, (down, right), (0, 1))
            assert not (grown & (mask >= 2) & (mask != label)).any()


@pytest.mark.parametrize("scene", SCENES)
def test_a_lesion_differs_from_the_tissue_around_it(scene: tuple[str, str]) -> None:
    for tone, sign in (("brighter", 1), ("darker", -1)):
        picture, mask = draw(Facts(*scene, ("lower right",), "large", tone, "low" if scene[0] == "histology" else ""), Dice(3))
        grey = picture.mean(2) if picture.ndim == 3 else picture.astype(float)
        assert sign * (grey[mask == 2].mean() - grey[mask == 1].mean()) > 30


def test_every_scene_can_be_drawn_and_histology_is_in_colour(phantom: Path) -> None:
    assert set(SCENES_DRAWN) == set(SCENES)
    for record in records(phantom, "train"):
        mode = Image.open(phantom / record.images[0]).mode
        assert mode == ("RGB" if record.modality == "histology" else "L")


def test_a_blind_guesser_stays_near_chance_on_closed_questions() -> None:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(3000):
        for question in questions(draw_facts(index, Dice(4, index)), Dice(5, index)):
            seen[question.text][question.answer] += 1
    hits = [
        seen[question.text].most_common(1)[0][0] == question.answer
        for index in range(600)
        for question in questions(draw_facts(index, Dice(6, index)), Dice(7, index))
        if question.answer_type is AnswerType.CLOSED
    ]
    assert len(hits) > 2000
    assert np.mean(hits) < 0.55


@pytest.mark.parametrize("shape", [(5, 7), (4, 6, 3)])
def test_a_bmp_is_read_back_by_others_as_it_was_written(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bmp(pixels)))), pixels)


def test_the_command_draws_what_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data"
    monkeypatch.setattr("sys.argv", ["phantom", "--out", str(out), "--train", "3", "--validation", "0", "--test", "2"])
    main()
    lines = (out / "records" / "test.jsonl").read_text().splitlines()
    assert {json.loads(line)["group"] for line in lines} == {"test-00000", "test-00001"}
    assert len(list((out / "images").iterdir())) == 5


def test_negative_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 or more"):
        write_phantom(tmp_path / "data", {Split.TRAIN: -1})
    assert not (tmp_path / "data").exists()

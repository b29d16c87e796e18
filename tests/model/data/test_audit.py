"""Leaks between splits, and what a split holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from model.data.audit import images_and_groups, leakage, statistics
from model.data.dataset import open_dataset
from tests.model.data.conftest import Writer
from tests.model.data.tiny_data import question

pytest.importorskip("imagehash", reason="imagehash is not installed")


def picture(seed: int, size: int = 128) -> Image.Image:
    """Soft blobs: as different from each other as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    soft = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(size / 12)), np.float64)
    return Image.fromarray(((soft - soft.min()) / (soft.max() - soft.min()) * 255).astype(np.uint8))


def save(folder: Path, pictures: dict[str, Image.Image], **options: object) -> list[Path]:
    for name, image in pictures.items():
        image.save(folder / name, **options)
    return [folder / name for name in pictures]


def test_different_pictures_and_groups_are_clean(tmp_path: Path) -> None:
    train = save(tmp_path, {f"a{n}.png": picture(n) for n in range(20)})
    test = save(tmp_path, {f"b{n}.png": picture(100 + n) for n in range(20)})
    report = leakage({"train": train, "test": test}, {"train": ["g1"], "test": ["g2"]})
    assert report.clean
    assert report.leaks == ()
    assert report.images == {"train": 20, "test": 20}
    assert report.lines() == ["no image or group is shared by train, test"]


def test_equal_pixels_are_found_behind_another_name_and_format(tmp_path: Path) -> None:
    train = save(tmp_path, {f"a{n}.png": picture(n) for n in range(10)})
    test = save(tmp_path, {"x.bmp": picture(3), "y.png": picture(200)})
    report = leakage({"train": train, "test": test})
    assert not report.clean
    assert [(leak.first, leak.other, leak.equal, leak.alike) for leak in report.leaks] == [("train", "test", 1, 0)]
    assert "x.bmp" not in str(report.facts()) + "".join(report.lines())


def test_recompressed_scaled_and_brightened_copies_are_alike_and_only_a_warning(tmp_path: Path) -> None:
    train = save(tmp_path, {f"a{n}.png": picture(n) for n in range(30)})
    copies = save(tmp_path, {f"j{n}.jpg": picture(n) for n in range(10)}, quality=60)
    copies += save(tmp_path, {f"s{n}.png": picture(n).resize((96, 96)) for n in range(10, 20)})
    copies += save(tmp_path, {f"g{n}.png": picture(n).point(lambda v: int(255 * (v / 255) ** 0.9)) for n in range(20, 30)})
    report = leakage({"train": train, "test": copies})
    assert report.leaks[0].equal == 0
    assert report.leaks[0].alike >= 29
    assert report.clean
    assert leakage({"train": train, "test": copies}, max_distance=0).leaks[0].alike < report.leaks[0].alike


def test_shared_groups_are_a_leak_even_with_other_images(tmp_path: Path) -> None:
    train, test = save(tmp_path, {"a.png": picture(1)}), save(tmp_path, {"b.png": picture(2)})
    report = leakage({"train": train, "test": test}, {"train": ["p1", "p2"], "test": ["p2", "p3"]})
    assert not report.clean
    assert report.leaks[0].groups == 1
    assert "p2" not in "".join(report.lines())


def test_every_pair_of_splits_is_compared(tmp_path: Path) -> None:
    a, b = save(tmp_path, {"a.png": picture(1)}), save(tmp_path, {"b.png": picture(2)})
    report = leakage({"one": a, "two": b, "three": [*a, *b]})
    assert [(leak.first, leak.other) for leak in report.leaks] == [("one", "three"), ("two", "three")]


def test_a_split_is_counted(write_set: Writer) -> None:
    asked = {"question_type": "presence", "answer_type": "closed", "modality": "ct"}
    yes = [{"role": "user", "text": "Is it?"}, {"role": "assistant", "text": "Yes"}]
    lines = [question("a", **asked, turns=yes), question("b", **asked, turns=yes), question("c", **asked)]
    lines.append(question("d", kind="caption", answer_type=None, group="h"))
    dataset = open_dataset(write_set({"train": lines}, licence="CC0-1.0", synthetic=True))
    assert statistics(dataset, "train") == {
        "records": 4,
        "images": 1,
        "groups": 2,
        "kinds": {"caption": 1, "question": 3},
        "answer_types": {"closed": 3},
        "question_types": {"presence": 3},
        "modalities": {"ct": 3, "none": 1},
        "majority": {"presence": 0.6667},
        "licence": "CC0-1.0",
        "synthetic": True,
    }
    assert images_and_groups(dataset, "train") == ({dataset.folder / "images/a.png"}, {"g", "h"})

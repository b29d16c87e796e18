"""The one way to a frozen tower: from memory, from disk, or from the tower, with the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.architecture.assembly import Assistant, build
from model.architecture.features import Disk, FeatureSource, tower_key
from model.architecture.joint import encode
from model.data.pixels import READING, PixelSource
from model.errors import DataError
from model.manifest import sha256_file
from tests.model.tiny_bases import IMAGE_SIZE, IMAGE_TOKENS, WIDTH, model_settings


@pytest.fixture
def assistant(bases: dict[str, Path]) -> Assistant:
    found = build(model_settings(), bases, seed=0)
    found.model.requires_grad_(False)
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (20 * number, 255 - 20 * number, 7)).save(path)
    return paths


class Counted:
    """A PixelSource that remembers what it was asked for."""

    def __init__(self, assistant: Assistant) -> None:
        self.asked: list[Path] = []
        self._source = PixelSource(assistant.image_processor, cache_bytes=0)

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        self.asked.extend(paths)
        return self._source(paths)


def source(assistant: Assistant, folder: Path | None, **changes: Any) -> tuple[FeatureSource, Counted]:
    pixels = Counted(assistant)
    disk = Disk(folder, 2**24) if folder else None
    return FeatureSource(assistant, pixels, READING, disk, **{"kept_bytes": 0, **changes}), pixels


def test_no_cache_a_cold_one_a_warm_one_and_memory_give_the_same_bits_in_any_company(
    assistant: Assistant, images: list[Path], tmp_path: Path
) -> None:
    none, _ = source(assistant, None)
    expected = none(images)
    assert expected.shape == (9, IMAGE_TOKENS, WIDTH)
    alone = torch.cat([encode(assistant.model, PixelSource(assistant.image_processor)([path])) for path in images])
    assert torch.equal(expected, alone)
    cold, pixels = source(assistant, tmp_path / "cache")
    assert torch.equal(cold(images[:4]), expected[:4])
    assert torch.equal(cold([*images[5:], *images[:5], images[0]]), expected[[5, 6, 7, 8, 0, 1, 2, 3, 4, 0]])
    cold.flush()
    assert len(pixels.asked) >= 9
    warm, pixels = source(assistant, tmp_path / "cache")
    assert torch.equal(warm(images), expected)
    assert pixels.asked == [], "no image was read, and the tower did not run"
    memory, pixels = source(assistant, None, kept_bytes=2**20)
    assert torch.equal(memory(images), expected)
    assert torch.equal(memory(images[::-1]), expected.flip(0))
    assert pixels.asked == images


def test_equal_files_are_one_entry_whatever_their_names(assistant: Assistant, images: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(images[0].read_bytes())
    first, _ = source(assistant, tmp_path / "cache")
    first(images[:1])
    first.flush()
    second, pixels = source(assistant, tmp_path / "cache", digest=sha256_file)
    second([copy])
    assert pixels.asked == []


def test_memory_holds_no_more_than_its_budget(assistant: Assistant, images: list[Path]) -> None:
    budget = 4 * IMAGE_TOKENS * WIDTH * 4
    kept, pixels = source(assistant, None, kept_bytes=budget)
    for _ in range(3):
        for path in images:
            kept([path])
    assert pixels.asked == images + 2 * images[4:], "the first four stay"
    assert sum(rows.untyped_storage().nbytes() for rows in kept._kept.values()) == budget


@pytest.mark.parametrize("why", ["the tower learns", "the tower is in training mode", "images are augmented"])
def test_where_features_are_not_fixed_nothing_is_kept_or_believed(
    assistant: Assistant, images: list[Path], tmp_path: Path, why: str
) -> None:
    trusted, _ = source(assistant, tmp_path / "cache")
    trusted(images)
    trusted.flush()
    before = sorted((tmp_path / "cache").rglob("*"))
    tower = assistant.model.model.vision_tower
    if why == "the tower learns":
        next(tower.parameters()).requires_grad_(True)
    elif why == "the tower is in training mode":
        tower.train()
    careful, pixels = source(assistant, tmp_path / "cache", kept_bytes=2**20, augmented=why == "images are augmented")
    assert not careful.fixed
    for _ in range(2):
        careful(images)
    careful.flush()
    assert pixels.asked == 2 * images
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_everything_that_can_change_a_bit_is_in_the_key(assistant: Assistant, bases: dict[str, Path]) -> None:
    def key(other: Assistant | None = None) -> dict[str, Any]:
        return tower_key(other or assistant, READING)

    first = key()
    assert key(build(model_settings(), bases, seed=5)) == first, "the connector's seed changes no feature"
    assert key(build(model_settings(feature_layer=-1), bases, seed=0)) != first
    assert key(build(model_settings(), bases, seed=0, dtype=torch.bfloat16)) != first
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert key() != first
    torch.set_num_threads(threads)
    assistant.image_processor.image_mean = (0.5, 0.5, 0.5)
    assert key() != first
    assert tower_key(assistant, (PixelSource,)) != key()
    assistant.image_processor.image_mean = tuple(first["preprocessing"]["image_mean"])
    assert key() == first
    with torch.no_grad():
        assistant.model.model.vision_tower.encoder.layers[0].mlp.fc1.bias[3] += 1e-6
    assert key() != first


def test_weights_that_are_not_run_are_not_in_the_key(assistant: Assistant) -> None:
    first = tower_key(assistant, READING)
    with torch.no_grad():
        assistant.model.model.vision_tower.encoder.layers[-1].mlp.fc1.bias.add_(1)
    assert tower_key(assistant, READING) == first


def test_a_cache_of_other_weights_is_not_believed(assistant: Assistant, images: list[Path], tmp_path: Path) -> None:
    old, _ = source(assistant, tmp_path / "cache")
    old(images)
    old.flush()
    with torch.no_grad():
        assistant.model.model.vision_tower.pre_layrnorm.bias.add_(1)
    new, pixels = source(assistant, tmp_path / "cache")
    assert torch.equal(new(images), source(assistant, None)[0](images))
    assert pixels.asked == images


def test_more_images_than_features_are_refused(assistant: Assistant, images: list[Path]) -> None:
    short = FeatureSource(assistant, lambda paths: torch.zeros(0, 3, IMAGE_SIZE, IMAGE_SIZE), READING)
    with pytest.raises(DataError, match="1 images were asked for, pixels of 0 came"):
        short(images)


def test_what_the_cache_has_to_say_is_passed_on(assistant: Assistant, images: list[Path], tmp_path: Path) -> None:
    first, _ = source(assistant, tmp_path / "cache")
    expected = first(images)
    first.flush()
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.name != "about.json":
            path.write_bytes(path.read_bytes()[:-1])
    told: list[str] = []
    again, pixels = source(assistant, tmp_path / "cache", tell=told.append)
    assert torch.equal(again(images), expected)
    again.flush()
    assert pixels.asked == images
    assert len(told) == 1
    mended, pixels = source(assistant, tmp_path / "cache")
    assert torch.equal(mended(images), expected)
    assert pixels.asked == []

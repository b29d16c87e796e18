"""Examples to batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from model.batch import IGNORE, Document
from model.data.collate import collate, packed
from model.data.examples import Example
from model.data.pixels import PixelSource
from model.errors import DataError, InternalError, MissingInputError

BYTES_OF_ONE = 3 * 8 * 8 * 4


@pytest.fixture
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for number in range(4):
        Image.new("RGB", (20, 10), (number * 60, 0, 0)).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(4)]


def example(name: str, ids: list[int], first_target: int, *images: Path) -> Example:
    labels = [IGNORE] * first_target + ids[first_target:]
    return Example(name, np.array(ids, np.int32), np.array(labels, np.int32), images)


def test_padding_stands_on_the_right_and_counts_for_nothing(processor: CLIPImageProcessorPil) -> None:
    batch = collate([example("a", [5, 6, 7], 1), example("b", [8], 1)], PixelSource(processor))
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 7, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.sources.tolist(), batch.targets.tolist()) == ([0, 1], [6, 7])
    assert batch.record_ids == ("a", "b")
    assert (batch.num_tokens, batch.num_targets) == (4, 2)
    assert {batch.input_ids.dtype, batch.sources.dtype, batch.targets.dtype, batch.attention_mask.dtype} == {torch.int64}


def test_examples_that_share_an_image_become_a_trunk_with_branches(paths: list[Path]) -> None:
    first, second, third = (
        Example(name, np.array(ids), np.array(labels), images, trunk)
        for name, ids, labels, images, trunk in (
            ("a", [1, 9, 9, 4, 5], [IGNORE, IGNORE, IGNORE, 4, 5], (paths[0],), 3),
            ("b", [1, 9, 9, 6, 7, 8], [IGNORE, IGNORE, IGNORE, IGNORE, 7, 8], (paths[0],), 3),
            ("c", [1, 2, 3], [IGNORE, 2, 3], (), 0),
        )
    )
    batch = packed([[first, second], [third]], lambda found: torch.zeros(len(found), 2, 2))
    assert batch.input_ids.tolist() == [[1, 9, 9, 4, 5, 6, 7, 8, 1, 2, 3]]
    assert batch.documents == (Document(0, 3, (2, 3)), Document(8, 3))
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2]]
    # The first token of the first branch is predicted from the end of the trunk, and no target from another example's token.
    assert list(zip(batch.sources.tolist(), batch.targets.tolist(), strict=True)) == [
        (2, 4),
        (3, 5),
        (5, 7),
        (6, 8),
        (8, 2),
        (9, 3),
    ]
    assert (batch.image_counts, batch.record_ids, len(batch.pixel_values)) == ((1, 0), ("a", "c"), 1)


@pytest.mark.parametrize("change", ["another image", "another beginning", "a target in the beginning"])
def test_examples_that_do_not_begin_alike_are_never_packed_as_one(paths: list[Path], change: str) -> None:
    ids, labels, images = np.array([1, 9, 9, 4, 5]), np.array([IGNORE] * 3 + [4, 5]), (paths[0],)
    first = Example("a", ids, labels, images, 3)
    if change == "another image":
        images = (paths[1],)
    elif change == "another beginning":
        ids = np.array([2, 9, 9, 4, 5])
    else:
        labels = np.array([IGNORE, 9, 9, 4, 5])
    with pytest.raises(InternalError, match="'a' and 'b' do not share"):
        packed([[first, Example("b", ids, labels, images, 3)]], lambda found: torch.zeros(len(found)))


def test_images_come_in_order_of_appearance(processor: CLIPImageProcessorPil, paths: list[Path]) -> None:
    source = PixelSource(processor)
    batch = collate([example("a", [1], 0, paths[2], paths[0]), example("b", [1], 0), example("c", [1], 0, paths[2])], source)
    assert batch.pixel_values.shape == (3, 3, 8, 8)
    assert batch.pixel_values.dtype == torch.float32
    expected = processor(images=[Image.open(paths[i]) for i in (2, 0, 2)], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.pixel_values, expected)


def test_a_batch_without_images_has_no_pixels(processor: CLIPImageProcessorPil) -> None:
    assert collate([example("a", [1, 2], 0)], PixelSource(processor)).pixel_values.shape == (0, 3, 8, 8)


def test_missing_pixels_are_an_error_with_both_counts(paths: list[Path]) -> None:
    with pytest.raises(DataError, match="names 2 images and got pixels of 1"):
        collate([example("a", [1], 0, paths[0], paths[1])], lambda _: torch.zeros(1, 3, 8, 8))


def test_an_image_is_read_once_while_memory_lasts(processor: CLIPImageProcessorPil, paths: list[Path]) -> None:
    source = PixelSource(processor, cache_bytes=2 * BYTES_OF_ONE)
    first = source(paths)
    assert source.cached == 2
    for path in paths[:2]:
        path.unlink()
    assert torch.equal(source(paths[:2]), first[:2])
    assert torch.equal(source(paths[2:]), first[2:])
    paths[3].unlink()
    with pytest.raises(MissingInputError):
        source(paths[3:])


def test_no_memory_means_no_cache(processor: CLIPImageProcessorPil, paths: list[Path]) -> None:
    source = PixelSource(processor, cache_bytes=0)
    source(paths)
    assert source.cached == 0


def test_the_limit_of_pixels_holds_for_training_too(processor: CLIPImageProcessorPil, paths: list[Path]) -> None:
    with pytest.raises(DataError, match="the limit is 199"):
        PixelSource(processor, max_pixels=199)(paths)

"""Best-fit-decreasing under two budgets, from metadata alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Packing
from model.data.packing import Documents, Lists, Metadata, check_rows, documents, image_budget, pack
from model.errors import ConfigError


def radiology_mix(count: int, seed: int = 0) -> Metadata:
    """30 % text, 45 % one view, 20 % two, 5 % four; 576 tokens a view."""
    generator = np.random.default_rng(seed)
    views = generator.choice([0, 1, 2, 4], count, p=[0.30, 0.45, 0.20, 0.05])
    text = generator.lognormal(4.6, 0.6, count).astype(np.int64).clip(10, 1000)
    return Metadata(text + 576 * views, views, 576 * views, np.arange(count))


def singles(metadata: Metadata) -> Documents:
    return documents(np.arange(len(metadata.tokens)), metadata, Packing.ROWS, 10**9, np.random.default_rng(0))


def sums(rows: Lists, values: np.ndarray) -> np.ndarray:
    return np.array([values[rows[number]].sum() for number in range(len(rows))])


def plain_best_fit(tokens: list[int], budget: int) -> int:
    """The textbook's best-fit-decreasing, one document after the other: how many rows it opens."""
    room: list[int] = []
    for size in sorted(tokens, reverse=True):
        fits = [(left, place) for place, left in enumerate(room) if left >= size]
        if fits:
            room[min(fits)[1]] -= size
        else:
            room.append(budget - size)
    return len(room)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 4)), min_size=1, max_size=80),
    st.integers(100, 300),
    st.integers(4, 9),
)
def test_every_document_stands_in_one_row_and_no_row_is_over_budget(
    items: list[tuple[int, int]], budget: int, images: int
) -> None:
    found = Documents(Lists(np.arange(len(items)), np.arange(len(items) + 1)), *np.array(items).T)
    rows = pack(found, budget, images, np.random.default_rng(0))
    assert sorted(rows.values.tolist()) == list(range(len(items)))
    assert sums(rows, found.tokens).max() <= budget
    assert sums(rows, found.images).max() <= images
    assert np.diff(rows.offsets).min() >= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=120), st.integers(100, 250))
def test_it_opens_as_many_rows_as_the_textbook(tokens: list[int], budget: int) -> None:
    found = Documents(Lists(np.arange(len(tokens)), np.arange(len(tokens) + 1)), np.array(tokens), np.zeros(len(tokens), int))
    assert len(pack(found, budget, 0, np.random.default_rng(0))) == plain_best_fit(tokens, budget)


@pytest.mark.parametrize(("budget", "fill"), [(4096, 0.958), (8192, 0.99)])
def test_the_radiology_mix_fills_rows_and_spreads_its_images(budget: int, fill: float) -> None:
    metadata = radiology_mix(8192)
    found = singles(metadata)
    rows = pack(found, budget, image_budget(found, budget), np.random.default_rng(0))
    assert metadata.tokens.sum() / (len(rows) * budget) >= fill
    views = sums(rows, metadata.images)
    assert views.max() / views.mean() <= 1.1


def test_documents_without_images_need_no_room_for_them() -> None:
    found = singles(Metadata(np.array([50, 50]), np.zeros(2, int), np.zeros(2, int), np.arange(2)))
    assert image_budget(found, 100) == 0
    assert len(pack(found, 100, 0, np.random.default_rng(0))) == 1


def test_an_example_longer_than_a_row_is_named_with_its_length() -> None:
    metadata = Metadata(np.array([50, 700]), np.array([0, 1]), np.array([0, 576]), np.arange(2))
    with pytest.raises(ConfigError, match=r"'b' has 700 tokens, a packed row holds 600; 1 of 2 records are larger"):
        check_rows(metadata, ["a", "b"], 600, None)
    with pytest.raises(ConfigError, match="'b' has 1 images, a packed row holds 0"):
        check_rows(metadata, ["a", "b"], 700, 0)
    check_rows(metadata, ["a", "b"], 700, 1)


def test_lists_are_taken_and_joined() -> None:
    lists = Lists(np.array([5, 6, 7, 8]), np.array([0, 1, 3, 4]))
    assert [part.tolist() for part in lists.take(np.array([2, 1]))] == [[8], [6, 7]]
    outer = Lists(np.array([2, 0, 1]), np.array([0, 2, 3]))
    joined = outer.joined(lists)
    assert [joined[number].tolist() for number in range(2)] == [[8, 5], [6, 7]]

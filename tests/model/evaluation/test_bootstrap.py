from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.evaluation.bootstrap import Draws


def test_the_same_seed_gives_the_same_interval_whatever_the_order_of_the_items() -> None:
    values, groups = [float(v) for v in np.random.default_rng(0).random(40)], [str(i // 2) for i in range(40)]
    straight = Draws(groups, 300, seed=5).interval(values, groups)
    turned = Draws(groups[::-1], 300, seed=5).interval(values[::-1], groups[::-1])
    assert straight == turned
    assert straight.items == 40
    assert straight.groups == 20
    assert straight != Draws(groups, 300, seed=6).interval(values, groups)


def test_questions_of_one_image_stay_together() -> None:
    # 40 images with 10 equal answers each: 400 items carry the information of 40.
    generator = np.random.default_rng(0)
    values = [float(v) for v in generator.integers(0, 2, 40) for _ in range(10)]
    grouped = [f"image-{i // 10}" for i in range(400)]
    alone = [f"item-{i}" for i in range(400)]
    wide = Draws(grouped, 1000).interval(values, grouped)
    narrow = Draws(alone, 1000).interval(values, alone)
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(10**0.5, rel=0.15)  # 1,000 draws fix a width to about 5 %; two widths are compared


def test_the_interval_of_a_mean_agrees_with_theory() -> None:
    groups = [str(i) for i in range(400)]
    found = Draws(groups, 4000).interval([float(i % 5 != 0) for i in range(400)], groups)
    half = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    # 4,000 draws leave about 3 % of the width; values lie on a lattice of 1/400.
    assert found.low == pytest.approx(0.8 - half, abs=0.006)
    assert found.high == pytest.approx(0.8 + half, abs=0.006)


def test_a_pair_cancels_what_is_hard_for_both() -> None:
    generator = np.random.default_rng(1)
    second = generator.random(200)
    groups = [str(i // 2) for i in range(200)]
    draws = Draws(groups, 500)
    found = draws.paired(list(second + 0.1), list(second), groups)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_one_group_has_a_value_and_no_interval() -> None:
    found = Draws(["a", "b"], 100).interval([1.0, 0.0], ["a", "a"])
    assert (found.value, found.low, found.high, found.groups) == (0.5, None, None, 1)


def test_several_scores_at_once_equal_each_alone() -> None:
    rows, groups = [[1.0, 0.2], [0.0, 0.4], [1.0, 0.9]], ["a", "b", "c"]
    draws = Draws(groups, 200)
    assert draws.intervals(rows, groups) == [draws.interval([row[k] for row in rows], groups) for k in range(2)]


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_not_a_list_of_finite_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values|items"):
        Draws(["a", "b"], 100).interval(values, ["a", "b"])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_raising_scores_never_lowers_an_end(items: list[tuple[float, float, int]]) -> None:
    groups = [str(group) for _, _, group in items]
    draws = Draws(groups, 100)
    before = draws.interval([min(a, b) for a, b, _ in items], groups)
    after = draws.interval([max(a, b) for a, b, _ in items], groups)
    if before.low is not None and after.low is not None and before.high is not None and after.high is not None:
        # 1e-12: sums of at most 30 numbers of at most 1.
        assert after.low >= before.low - 1e-12
        assert after.high >= before.high - 1e-12

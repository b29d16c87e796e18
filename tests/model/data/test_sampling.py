"""The batch plan: a pure function whose steps hold the same examples on any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Packing
from model.data.packing import Metadata
from model.data.sampling import Plan, Rules, packed_tokens

LENGTHS = np.random.default_rng(3).integers(20, 200, 2000).tolist()


@dataclass(frozen=True)
class Step:
    """A step of a plan, with the examples that it holds whatever the order."""

    ranks: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def examples(self) -> tuple[int, ...]:
        return tuple(sorted(index for rank in self.ranks for micro in rank for index in micro))


def alone(lengths: Sequence[int]) -> Metadata:
    """Examples without images."""
    return Metadata(np.array(lengths, np.int64), *np.zeros((2, len(lengths)), np.int64), np.arange(len(lengths)))


def questions(images: int, each: int, seed: int = 0) -> Metadata:
    """`each` questions of 20 to 60 tokens about every image of 100."""
    rests = np.random.default_rng(seed).integers(20, 60, images * each)
    ones = np.ones(images * each, np.int64)
    return Metadata(rests + 100, ones, 100 * ones, np.repeat(np.arange(images), each))


def steps_of(metadata: Metadata, rules: Rules, world_size: int = 1, epoch: int = 0, seed: int = 0) -> list[Step]:
    before = len(Plan(metadata, rules, world_size, seed, epoch))
    return [Step(ranks) for ranks in Plan(metadata, rules, world_size, seed, epoch + 1)[before:]]


def plan(
    lengths: Sequence[int],
    batch_tokens: int,
    micro_batch_tokens: int,
    world_size: int,
    seed: int,
    epoch: int,
    weights: Sequence[float] | None = None,
) -> list[Step]:
    """The steps of one epoch, without packing."""
    rules, metadata = Rules(batch_tokens, micro_batch_tokens), alone(lengths)
    before = len(Plan(metadata, rules, world_size, seed, epoch, weights))
    return [Step(ranks) for ranks in Plan(metadata, rules, world_size, seed, epoch + 1, weights)[before:]]


def shown(steps: list[Step]) -> Counter[int]:
    return Counter(index for step in steps for index in step.examples)


def padded(step: Step, lengths: list[int]) -> int:
    return sum(max(lengths[i] for i in micro) * len(micro) for rank in step.ranks for micro in rank)


def test_an_epoch_shows_every_example_once_and_keeps_the_last_partial_step() -> None:
    steps = plan(LENGTHS, 4000, 4000, 1, seed=0, epoch=0)
    assert shown(steps) == Counter(range(len(LENGTHS)))
    assert [len(step.examples) for step in plan([10] * 25, 100, 100, 1, seed=0, epoch=0)] == [10, 10, 5]


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_a_step_holds_the_same_examples_on_any_number_of_workers(world_size: int) -> None:
    single = plan(LENGTHS, 4000, 4000, 1, seed=0, epoch=0)
    together = plan(LENGTHS, 4000, 4000 // world_size, world_size, seed=0, epoch=0)
    assert [step.examples for step in single] == [step.examples for step in together]
    assert {len(step.ranks) for step in together} == {world_size}


def test_the_plan_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    first = plan(LENGTHS, 4000, 1000, 2, seed=0, epoch=0)
    assert first == plan(list(LENGTHS), 4000, 1000, 2, seed=0, epoch=0)
    assert first != plan(LENGTHS, 4000, 1000, 2, seed=1, epoch=0)
    assert first != plan(LENGTHS, 4000, 1000, 2, seed=0, epoch=1)


def test_steps_are_full_and_within_the_limits() -> None:
    for step in plan(LENGTHS, 4000, 1000, 2, seed=0, epoch=0)[:-1]:
        assert 4000 - 200 < sum(LENGTHS[index] for index in step.examples) <= 4000
        for rank in step.ranks:
            assert all(max(LENGTHS[i] for i in micro) * len(micro) <= 1000 for micro in rank)


def test_padding_stays_near_a_tenth_where_plain_batches_would_waste_almost_half() -> None:
    steps = plan(LENGTHS, 4000, 4000, 1, seed=0, epoch=0)
    real = sum(LENGTHS)
    assert real / sum(padded(step, LENGTHS) for step in steps) > 0.88
    plain = sum(max(LENGTHS[i] for i in step.examples) * len(step.examples) for step in steps)
    assert real / plain < 0.6


def test_steps_are_random_samples_and_not_sorted_by_length() -> None:
    means = [np.mean([LENGTHS[i] for i in step.examples]) for step in plan(LENGTHS, 4000, 4000, 1, seed=0, epoch=0)[:-1]]
    # The mean of 36 draws from 20..199 has a standard deviation of 52 / 6; groups by length would spread over 20..199.
    assert np.std(means) < 2 * 52 / 6


def test_workers_get_the_same_number_of_passes_and_nearly_the_same_work() -> None:
    loads = []
    for step in plan(LENGTHS, 16_000, 1000, 4, seed=0, epoch=0)[:-1]:
        assert len({len(rank) for rank in step.ranks}) == 1
        load = [sum(max(LENGTHS[i] for i in micro) * len(micro) for micro in rank) for rank in step.ranks]
        loads.append(max(load) / np.mean(load))
    assert np.mean(loads) < 1.08


def test_weight_two_shows_twice_and_a_half_by_turns() -> None:
    weights = [2.0] * 10 + [0.5] * 11 + [1.0] * 5
    epochs = [shown(plan([10] * 26, 64, 64, 1, seed=5, epoch=epoch, weights=weights)) for epoch in range(4)]
    for seen in epochs:
        assert all(seen[index] == 2 for index in range(10))
        assert all(seen[index] == 1 for index in range(21, 26))
        assert sum(seen[index] for index in range(10, 21)) in (5, 6)
        assert max(seen[index] for index in range(10, 21)) == 1
    assert [sum(seen[index] for seen in epochs) for index in range(10, 21)] == [2] * 11
    assert epochs[0] != epochs[1]


def test_weight_two_and_a_half_shows_two_or_three_times() -> None:
    seen = shown(plan([10] * 8, 64, 64, 1, seed=5, epoch=0, weights=[2.5] * 8))
    assert sorted(seen.values()) == [2] * 4 + [3] * 4


def test_an_example_above_the_limits_gets_a_step_and_a_pass_of_its_own() -> None:
    steps = plan([10, 500, 10], 100, 50, 1, seed=0, epoch=0)
    assert shown(steps) == Counter(range(3))
    assert any(step.examples == (1,) for step in steps)


def test_fewer_examples_than_workers_leave_some_without_work() -> None:
    (step,) = plan([10, 10], 100, 100, 4, seed=0, epoch=0)
    assert sorted(len(rank) for rank in step.ranks) == [0, 0, 1, 1]


def test_no_examples_make_no_steps() -> None:
    assert plan([], 100, 100, 2, seed=0, epoch=0) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])), max_size=60),
    st.integers(1, 6),
    st.integers(64, 800),
    st.integers(0, 5),
)
def test_any_plan_is_whole_even_and_independent_of_the_workers(
    items: list[tuple[int, float]], world_size: int, batch_tokens: int, epoch: int
) -> None:
    lengths, weights = [size for size, _ in items], [weight for _, weight in items]
    steps = plan(lengths, batch_tokens, batch_tokens // 2, world_size, 0, epoch, weights)
    seen = shown(steps)
    assert all(int(weight) <= seen[index] <= int(weight) + 1 for index, weight in enumerate(weights))
    assert [step.examples for step in steps] == [
        step.examples for step in plan(lengths, batch_tokens, batch_tokens, 1, 0, epoch, weights)
    ]
    for step in steps:
        counts = [len(rank) for rank in step.ranks]
        assert max(counts) - min(counts) <= 1
        assert all(micro for rank in step.ranks for micro in rank)
        if len(set(counts)) > 1:
            assert all(len(micro) == 1 for rank in step.ranks for micro in rank)


PACKED = [Packing.ROWS, Packing.SHARED_IMAGE]


@pytest.mark.parametrize("packing", PACKED)
def test_packed_epochs_show_every_example_once_in_rows_within_the_budgets(packing: Packing) -> None:
    metadata = questions(60, 7)
    steps = steps_of(metadata, Rules(8192, 2048, packing, pack_images=9))
    assert shown(steps) == Counter(range(420))
    rows = [row for step in steps for rank in step.ranks for row in rank]
    assert all(packed_tokens(row, metadata, packing) <= 2048 for row in rows)
    assert all(len(step.ranks[0]) == 4 for step in steps[:-1])
    images = [len(set(metadata.group[list(row)])) if packing is Packing.SHARED_IMAGE else len(row) for row in rows]
    assert max(images) <= 9


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_packed_steps_hold_the_same_examples_on_any_number_of_workers(packing: Packing, world_size: int) -> None:
    metadata, rules = questions(30, 7), Rules(4096, 2048, packing)
    one, many = steps_of(metadata, rules), steps_of(metadata, rules, world_size)
    assert [step.examples for step in one] == [step.examples for step in many]
    assert all(len({len(rank) for rank in step.ranks}) == 1 for step in many[:-1])


@pytest.mark.parametrize("packing", PACKED)
def test_packed_plans_depend_on_seed_and_epoch(packing: Packing) -> None:
    metadata, rules = questions(30, 7), Rules(4096, 2048, packing)
    first = steps_of(metadata, rules)
    assert first == steps_of(metadata, rules)
    assert first != steps_of(metadata, rules, seed=1)
    assert first != steps_of(metadata, rules, epoch=1)


def test_questions_of_an_image_share_it() -> None:
    metadata = questions(40, 11)
    rows = [row for step in steps_of(metadata, Rules(4096, 4096, Packing.SHARED_IMAGE)) for row in step.ranks[0]]
    computed = sum(packed_tokens(row, metadata, Packing.SHARED_IMAGE) for row in rows)
    assert computed == 40 * 100 + int((metadata.tokens - 100).sum())
    assert metadata.tokens.sum() / computed > 2.5  # (100 + 40) / (100 / 11 + 40)


def test_a_group_longer_than_a_row_becomes_several_documents() -> None:
    metadata = questions(3, 50)
    rows = [row for step in steps_of(metadata, Rules(512, 512, Packing.SHARED_IMAGE)) for row in step.ranks[0]]
    assert all(packed_tokens(row, metadata, Packing.SHARED_IMAGE) <= 512 for row in rows)
    assert sorted(index for row in rows for index in row) == list(range(150))


def test_step_n_is_had_without_the_steps_before_it() -> None:
    metadata, rules = questions(200, 5), Rules(2048, 1024, Packing.SHARED_IMAGE)
    whole = Plan(metadata, rules, 1, 0, 2.5)
    listed = list(whole)
    assert whole[len(whole) - 1] == listed[-1]
    assert whole[-1] == listed[-1]
    with pytest.raises(IndexError):
        whole[len(whole)]


def test_an_image_counts_when_rows_are_dealt_out() -> None:
    """Two rows of text and two of images: no worker gets both of the same kind."""
    metadata = Metadata(np.array([100] * 4), np.array([1, 1, 0, 0]), np.array([90, 90, 0, 0]), np.arange(4))
    (step,) = steps_of(metadata, Rules(400, 100, Packing.ROWS), world_size=2)
    assert [sum(int(metadata.images[index]) for (index,) in rank) for rank in step.ranks] == [1, 1]

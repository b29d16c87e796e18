"""Batches made ahead."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from model.batch import Batch
from model.errors import DataError
from model.training.ahead import DEPTH, Ahead


def batch_of(micro: Sequence[int]) -> Batch:
    ids = torch.tensor([list(micro)])
    return Batch(ids, torch.ones_like(ids), torch.zeros(0), torch.zeros(0), torch.zeros(0))


def test_an_expected_batch_is_made_by_another_thread_and_is_the_same() -> None:
    made: list[tuple[tuple[int, ...], str]] = []

    def make(micro: Sequence[int]) -> Batch:
        made.append((tuple(micro), threading.current_thread().name))
        return batch_of(micro)

    ahead = Ahead(make, pin=False)
    ahead.expect([(1, 2), (3,)])
    assert ahead((1, 2)).input_ids.tolist() == [[1, 2]]
    assert ahead([3]).input_ids.tolist() == [[3]]
    assert [micro for micro, _ in made] == [(1, 2), (3,)]
    assert all(thread.startswith("batches") for _, thread in made)


def test_no_more_than_a_few_batches_wait() -> None:
    started = threading.Semaphore(0)

    def make(micro: Sequence[int]) -> Batch:
        started.release()
        return batch_of(micro)

    ahead = Ahead(make, pin=False)
    ahead.expect([(number,) for number in range(10)])
    ahead((DEPTH - 1,))
    assert sum(started.acquire(blocking=False) for _ in range(20)) == DEPTH


def test_after_a_step_back_the_right_batch_comes() -> None:
    ahead = Ahead(batch_of, pin=False)
    ahead.expect([(5,), (6,)])
    assert ahead((1,)).input_ids.tolist() == [[1]]
    ahead.expect([(2,)])
    assert ahead((2,)).input_ids.tolist() == [[2]]


def test_an_error_of_the_thread_is_raised_where_its_batch_is_asked_for() -> None:
    def make(micro: Sequence[int]) -> Batch:
        raise DataError("an image is gone", "restore it")

    ahead = Ahead(make, pin=False)
    ahead.expect([(1,)])
    with pytest.raises(DataError, match="an image is gone"):
        ahead((1,))

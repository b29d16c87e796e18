"""Batches made ahead, by one thread beside the device.

While a GPU computes a pass, the next ones are read, tokenised examples laid out and images decoded, in pinned memory from which copies
do not wait. An error of the thread is raised where its batch is asked for. On a CPU there is nothing to overlap, and none is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace

import torch

from model.batch import Batch

DEPTH = 3
"""Most batches that wait."""
Make = Callable[[Sequence[int]], Batch]


class Ahead:
    """Gives the batch of a pass, made before if it was expected.

    Args:
        make: Makes the batch of a pass, on the CPU.
        pin: Put it into pinned memory.
    """

    def __init__(self, make: Make, pin: bool) -> None:
        self._make, self._pin = make, pin
        self._worker = ThreadPoolExecutor(1, "batches")
        self._waiting: dict[tuple[int, ...], Future[Batch]] = {}

    def expect(self, passes: Iterable[Sequence[int]]) -> None:
        """Begin with the batches of these passes, the next ones first."""
        for micro in map(tuple, passes):
            if len(self._waiting) >= DEPTH:
                return
            if micro not in self._waiting:
                self._waiting[micro] = self._worker.submit(self._prepare, micro)

    def __call__(self, micro: Sequence[int]) -> Batch:
        """The batch of a pass; whatever making it raised."""
        waiting = self._waiting.pop(tuple(micro), None)
        if waiting is None:
            self._waiting.clear()  # the run went back or on: what was expected will not come
            return self._prepare(tuple(micro))
        return waiting.result()

    def _prepare(self, micro: tuple[int, ...]) -> Batch:
        batch = self._make(micro)
        return pinned(batch) if self._pin else batch


def pinned(batch: Batch) -> Batch:
    """The batch with all tensors in pinned memory, except those already on a device."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved = {name: value.pin_memory() for name, value in values.items() if isinstance(value, torch.Tensor) and not value.is_cuda}
    return replace(batch, **moved)

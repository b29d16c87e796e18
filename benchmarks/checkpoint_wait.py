"""How long steps stand still for checkpoints: a run with them against one without, with and without hashing.

The toy run of tests/toy_run.py with a wide layer: weights and moments of `STATE_MIB` in all, saved every `EVERY` steps. Runs of all
kinds take turns, `ROUNDS` times, and the least of each counts. `waited_share` is what the store itself says it held up the steps,
copying included; the other shares compare whole runs, and hold the competition for the processor and the disk as well.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from model import manifest
from model.training.loop import train
from model.training.resume import Store
from tests.toy_run import toy_training

WIDTH, STEPS, EVERY, ROUNDS = 200_000, 100, 50, 2
KINDS = ("none", "hashed", "unhashed")


def measure() -> dict[str, float]:
    """Seconds a step and shares of waiting."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    held: list[float] = []
    for _ in range(ROUNDS):
        for kind in KINDS:
            whole, stood = _run(kind)
            seconds[kind].append(whole)
            if kind == "hashed":
                held.append(stood / whole)
    least = {kind: min(values) for kind, values in seconds.items()}
    state = sum(tensor.numel() for tensor in _weights()) * 4 * 3
    return {
        "state_mib": state / 2**20,
        **{f"step_milliseconds_{kind}": 1000 * value / STEPS for kind, value in least.items()},
        "slower_share_hashed": least["hashed"] / least["none"] - 1,
        "slower_share_unhashed": least["unhashed"] / least["none"] - 1,
        "waited_share": min(held),
    }


def _weights() -> list[torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        training, _ = toy_training(Path(folder), width=WIDTH)
        return list(training.sharing.weights.values())


def _run(kind: str) -> tuple[float, float]:
    """Seconds of a run, and those in which its steps stood still for the store."""
    stood = [0.0]
    with tempfile.TemporaryDirectory() as folder, _unhashed() if kind == "unhashed" else contextlib.nullcontext():
        every = STEPS if kind == "none" else EVERY
        training, _ = toy_training(Path(folder) / "work", every=every, steps=STEPS, width=WIDTH)
        with _timed("save", stood), _timed("catch_up", stood):
            began = time.perf_counter()
            train(training)
            return time.perf_counter() - began, stood[0]


@contextlib.contextmanager
def _unhashed() -> Iterator[None]:
    with mock.patch.object(manifest, "sha256_file", return_value="0" * 64):
        yield


@contextlib.contextmanager
def _timed(name: str, total: list[float]) -> Iterator[None]:
    """Inside, the time of this method of the store is added up."""
    method = getattr(Store, name)

    def timed(*args: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **more)
        finally:
            total[0] += time.perf_counter() - began

    with mock.patch.object(Store, name, timed):
        yield

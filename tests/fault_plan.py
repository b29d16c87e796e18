"""A fault plan: what shall go wrong, on which rank and at which step; each fault happens once, and that it did is asserted.

1. `drawn(seed, ...)` or a list of `Fault`s makes a plan; `FaultPlan.write` puts it into a folder that survives the processes.
2. A process under test calls `install(folder)` before it trains. Functions of the loop and of the store are wrapped here, in the
   test's process: nothing of this is in the product. It works in any process that can import this file: a forked child, one of
   torchrun's, a worker of Ray.
3. A fault leaves its mark, on the disk, just before it acts; so it acts once over all restarts.
4. `FaultPlan.assert_all_fired` names those that did not act, with the seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from model import manifest
from model.architecture import tensors
from model.training import loop, resume
from model.training.places import Entry, Folder

IN_A_STEP = ("kill", "sigterm", "sigterm twice", "stall", "nan loss", "inf loss", "nan gradient", "spike", "flipped weight")
IN_A_SAVE = ("full disk", "short write", "lost store", "kill in save", "flipped byte", "truncated file", "sigterm in save")
BOUNDARIES = (
    *("stage", "write weights", "half a file", "write optimizer", "write rng", "seal", "half a manifest", "publish", "published"),
    "purge",
)
"""Moments of a save at which `kill in save` can strike."""
STALL_SECONDS = 600.0


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    rank: int = 0
    step: int = 1
    """From 1. A fault of a save acts in the first save at or after it."""
    boundary: str = ""


@dataclass(frozen=True)
class FaultPlan:
    """Faults of one run."""

    folder: Path
    faults: Sequence[Fault]
    seed: int | None = None

    def write(self) -> FaultPlan:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"seed": self.seed, "faults": [asdict(fault) for fault in self.faults]}
        (self.folder / "plan.json").write_text(json.dumps(content))
        return self

    @classmethod
    def read(cls, folder: Path) -> FaultPlan:
        content = json.loads((folder / "plan.json").read_text())
        return cls(folder, [Fault(**fault) for fault in content["faults"]], content["seed"])

    def fired(self) -> list[bool]:
        return [self._mark(number).exists() for number in range(len(self.faults))]

    def assert_all_fired(self) -> None:
        silent = [fault for fault, fired in zip(self.faults, self.fired(), strict=True) if not fired]
        assert not silent, f"did not happen: {silent}; seed {self.seed}"

    def strike(self, kinds: Sequence[str], fits: Callable[[Fault], bool]) -> Fault | None:
        """The first fault of these kinds that fits and has not acted; its mark is on the disk when this returns."""
        for number, fault in enumerate(self.faults):
            if fault.kind in kinds and fits(fault):
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(self._mark(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    return fault
        return None

    def _mark(self, number: int) -> Path:
        return self.folder / f"fired-{number}"


def drawn(folder: Path, seed: int, kinds: Sequence[str], ranks: int, steps: int, count: int) -> FaultPlan:
    """`count` faults by the seed."""
    draw = random.Random(seed)
    faults = []
    for _ in range(count):
        kind = draw.choice(list(kinds))
        boundary = draw.choice(BOUNDARIES) if kind == "kill in save" else ""
        rank = draw.randrange(ranks) if kind in IN_A_STEP else 0
        faults.append(Fault(kind, rank, draw.randint(1, steps), boundary))
    return FaultPlan(folder, faults, seed).write()


def install(folder: Path) -> None:
    """Let the faults of the plan in `folder` happen in this process."""
    plan = FaultPlan.read(folder)
    loop._step = functools.partial(_step, plan, loop._step)
    write: Callable[..., None] = resume.Store._write
    resume.Store._write = lambda store, entry, *given: _save(plan, write, store, entry, *given)  # type: ignore[method-assign]


def _step(plan: FaultPlan, step: Callable[..., Any], training: loop.Training, number: int, *more: Any) -> Any:
    rank = training.ranks.rank
    while fault := plan.strike(IN_A_STEP, lambda fault: (fault.rank, fault.step) == (rank, number + 1)):
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind.startswith("sigterm"):
            for _ in range(2 if fault.kind == "sigterm twice" else 1):
                os.kill(os.getpid(), signal.SIGTERM)
        elif fault.kind == "stall":
            time.sleep(STALL_SECONDS)
        elif fault.kind == "flipped weight":
            weight = next(iter(training.sharing.weights.values()))
            with torch.no_grad():
                weight.view(-1).view(torch.int32)[0] ^= 1
        else:
            training = dataclasses.replace(training, objective=_Bent(training.objective, fault.kind))
    return step(training, number, *more)


class _Bent:
    """An objective with a fault in its loss."""

    def __init__(self, objective: Any, kind: str) -> None:
        self._objective, self._kind = objective, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def loss_sum(self, micro: loop.Micro) -> torch.Tensor:
        loss: torch.Tensor = self._objective.loss_sum(micro)
        if self._kind == "nan gradient":
            return loss + (loss * 0.0).sqrt()  # adds 0, and its slope is no number
        return loss * {"nan loss": math.nan, "inf loss": math.inf, "spike": 1e6}[self._kind]


def _save(plan: FaultPlan, write: Callable[..., None], store: Any, entry: Entry, *given: Any) -> None:
    fault = plan.strike(IN_A_SAVE, lambda fault: fault.step <= entry.step)
    if fault is None:
        write(store, entry, *given)
        return
    with _bent_save(fault):
        write(store, entry, *given)
    if fault.kind in ("flipped byte", "truncated file"):
        path = store.place.root / entry.name / "weights.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content if fault.kind == "flipped byte" else content[:-3])
        _die()


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(number: int) -> Callable[..., None]:
    def act(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return act


@contextlib.contextmanager
def _bent_save(fault: Fault) -> Iterator[None]:
    """Inside, one save goes wrong."""
    original = tensors.write

    def half(path: Path, values: Any) -> None:
        original(path, values)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    def terminated(path: Path, values: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(path, values)

    patches: dict[str, list[Any]] = {
        "full disk": [mock.patch.object(tensors, "write", _fail(errno.ENOSPC))],
        "short write": [mock.patch.object(tensors, "write", half)],
        "lost store": [mock.patch.object(Folder, "commit", _fail(errno.ESTALE))],
        "sigterm in save": [mock.patch.object(tensors, "write", terminated)],
        "kill in save": [_killing(fault.boundary)] if fault.boundary else [],
    }
    with contextlib.ExitStack() as stack:
        for patch in patches.get(fault.kind, []):
            stack.enter_context(patch)
        yield


def _killing(boundary: str) -> Any:
    """The process dies before the named act, or after half of it."""
    write, seal, publish = tensors.write, manifest.seal, manifest.publish

    def writing(path: Path, values: Any) -> None:
        if boundary == f"write {path.stem}":
            _die()
        write(path, values)
        if boundary == "half a file":
            path.write_bytes(path.read_bytes()[:20])
            _die()

    def sealing(folder: Path, *args: Any, **more: Any) -> None:
        seal(folder, *args, **more)
        path = folder / manifest.FILE_NAME
        path.write_bytes(path.read_bytes()[:40])
        _die()

    def publishing(*args: Any) -> None:
        publish(*args)
        _die()

    table: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "stage": (Folder, "stage", _die),
        "seal": (manifest, "seal", _die),
        "half a manifest": (manifest, "seal", sealing),
        "publish": (manifest, "publish", _die),
        "published": (manifest, "publish", publishing),
        "purge": (Folder, "remove", _die),
    }
    target, name, act = table.get(boundary, (tensors, "write", writing))
    return mock.patch.object(target, name, act)

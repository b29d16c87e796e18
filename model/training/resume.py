"""Intermediate checkpoints, and going on from the newest good one.

    work/step-000100/    manifest.json (kind "step"; facts: step, configuration), weights.safetensors, optimizer.safetensors,
                         rng.safetensors
    work/bad-step-000150/  set aside because it did not verify; never read again, never removed

1. `Store.save` writes what the next step depends on: the weights that learn, the optimizer's moments, every rank's random state,
   and the number of finished steps, from which the plan gives the position in the data. Two are kept; an old one goes only after a
   newer one is whole. The tensors are whole and named, however the workers share them.
2. `Store.resume` takes the newest that verifies. One that does not is set aside, with a note. If there were some and none is good,
   the run stops: starting again from nothing must be somebody's decision.
3. A checkpoint of another configuration is refused, with the fields that differ.

On the same kind of processor with the same number of threads, a resumed run ends with the same bytes as one that never stopped.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from model import manifest
from model.architecture import tensors
from model.errors import BiovlmError, ConfigError, MissingInputError, RefusedError
from model.training.ranks import Ranks
from model.training.reporter import Reporter
from model.training.sharing import Sharing, Tensors

KIND = "step"
KEPT = 2
NAME = re.compile(r"step-(\d{6,})")
WEIGHTS, OPTIMIZER, RNG = (name + tensors.SUFFIX for name in ("weights", "optimizer", "rng"))


class Store:
    """The intermediate checkpoints of one run.

    Args:
        work: Folder of this run alone.
        configuration: JSON values that decide what the run does; a checkpoint of another one is refused.
        ranks: The workers; rank 0 writes.
        reporter: Hears what was set aside.
    """

    def __init__(self, work: Path, configuration: Mapping[str, Any], ranks: Ranks, reporter: Reporter) -> None:
        self.work = work
        self._configuration = json.loads(manifest.canonical_json(configuration))  # as it will read back: lists, not tuples
        self._ranks = ranks
        self._reporter = reporter

    def save(self, step: int, sharing: Sharing) -> None:
        """Write the state after `step` finished steps. All ranks call it together. CannotWriteError on a full disk."""
        states = self._ranks.gather(_random_state(sharing.device))
        weights, moments = sharing.state()

        def write() -> int:
            facts = {"step": step, "configuration": self._configuration}
            with manifest.commit(self.work / f"step-{step:06d}", KIND, facts=facts) as folder:
                tensors.write(folder / WEIGHTS, weights)
                tensors.write(folder / OPTIMIZER, moments)
                tensors.write(folder / RNG, {str(rank): state for rank, state in enumerate(states)})
            self._remove_old()
            return step

        self._ranks.together(write)

    def resume(self, sharing: Sharing) -> int:
        """Restore the newest good checkpoint: weights, moments, random numbers.

        Returns:
            Finished steps; 0 if there is no checkpoint at all.

        Raises:
            ConfigError: The newest good checkpoint belongs to another configuration.
            MissingInputError: There are checkpoints, and none is good.
        """
        step = self._ranks.together(lambda: self._choose(sharing.weights))
        if step:
            self._restore(self.work / f"step-{step:06d}", sharing)
        return step

    def clear(self) -> None:
        """Remove the folder: the run is finished and its result stands elsewhere."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _choose(self, learned: Tensors) -> int:
        """The newest step whose checkpoint verifies and can be read; others are set aside."""
        for leftover in self.work.glob(".step-*"):  # a writer was killed
            shutil.rmtree(leftover, ignore_errors=True)
        reasons = [f"{path.name}: set aside before" for path in sorted(self.work.glob("bad-*"))]
        for step, folder in self._candidates():
            try:
                record = manifest.verify(folder)
                if record.kind != KIND or record.facts.get("step") != step:
                    raise RefusedError(f"{folder} is not the checkpoint of step {step}")
                _read(folder, learned)
            except (BiovlmError, OSError) as error:
                reasons.append(self._set_aside(folder, error))
                continue
            self._check_configuration(record.facts.get("configuration"), folder)
            return step
        if reasons:
            raise MissingInputError(
                f"no checkpoint in {self.work} is good: {'; '.join(reasons)}",
                "restore one of them; or remove the folder to start again from the beginning",
            )
        return 0

    def _candidates(self) -> Iterator[tuple[int, Path]]:
        """Step and folder, newest first."""
        found = [(int(match.group(1)), path) for path in self.work.glob("step-*") if (match := NAME.fullmatch(path.name))]
        yield from sorted(found, reverse=True)

    def _set_aside(self, folder: Path, error: Exception) -> str:
        reason = str(error).splitlines()[0]
        number = sum(1 for _ in self.work.glob(f"bad-{folder.name}*"))
        aside = self.work / f"bad-{folder.name}{f'-{number}' if number else ''}"
        try:
            folder.rename(aside)
        except OSError as failure:
            raise manifest.cannot_write(aside, failure) from failure
        self._reporter.note(f"checkpoint {folder.name} set aside as {aside.name}: {reason}")
        return f"{folder.name}: {reason}"

    def _check_configuration(self, stored: Any, folder: Path) -> None:
        changes = differences(stored if isinstance(stored, dict) else {}, self._configuration)
        if changes:
            raise ConfigError(
                f"{folder} was made by another configuration; {len(changes)} fields differ: {'; '.join(changes[:8])}",
                "go on with the former configuration, or choose another folder to start anew",
            )

    def _restore(self, folder: Path, sharing: Sharing) -> None:
        weights, moments, states = _read(folder, sharing.weights)
        sharing.load(weights, moments, str(folder / OPTIMIZER))
        _set_random_state(states[str(self._ranks.rank)])

    def _remove_old(self) -> None:
        for _, folder in list(self._candidates())[KEPT:]:
            hidden = folder.with_name(f".{folder.name}.old")
            try:
                folder.rename(hidden)  # first out of sight, so that a crash leaves no half checkpoint to stumble over
                shutil.rmtree(hidden)
            except OSError as error:
                self._reporter.note(f"cannot remove {folder.name}: {error.strerror}")


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """`field: before -> after` for every leaf in which two JSON values differ, in the order of the fields."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]


def _read(folder: Path, learned: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Weights, moments and random states, checked for names, shapes and finiteness."""
    weights = tensors.read(folder / WEIGHTS)
    tensors.check_shapes(weights, learned, str(folder / WEIGHTS))
    moments = tensors.read(folder / OPTIMIZER)
    for values, name in ((weights, WEIGHTS), (moments, OPTIMIZER)):
        tensors.check_finite(values, str(folder / name))
    return weights, moments, tensors.read(folder / RNG)


def _random_state(device: torch.device) -> torch.Tensor:
    """(bytes,) uint8: the CPU's generator, and the GPU's behind it."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_random_state(state: torch.Tensor) -> None:
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].contiguous())
    if state.numel() > size:
        torch.cuda.set_rng_state(state[size:].contiguous())

"""Intermediate checkpoints, and going on from the newest good one.

    ATTEMPT/step-000100/    manifest.json (kind "step"; facts: step, configuration, world sizes, journal, whether the run was calm),
                            weights.safetensors, optimizer.safetensors, rng.safetensors

1. `Store.resume` claims an attempt (places), so that an older process of this run can write no more. Then it takes the newest
   checkpoint of any attempt that verifies; one that does not goes to the quarantine with the reason. If there were some and none is
   good, the run stops: starting again from nothing must be somebody's decision.
2. `Store.save` copies, at a step boundary, what the next step depends on: the weights that learn, the optimizer's moments, every
   rank's random state, the loop's journal, and the number of finished steps, from which the plan gives the position in the data.
   A background thread (writer) hashes and writes it while the steps go on. The tensors are whole and named, however the workers share
   them. `catch_up` lets it overlap with one step: a crash then costs one interval and one step at most. Only where that would take
   more than `WAIT_SHARE` of the run's time, the steps go on, and a crash costs those made meanwhile as well.
3. Two are kept, and the newest calm one to roll back to; an old one goes only after a newer one is whole.
4. A checkpoint of another configuration is refused, with the fields that differ. Another number of workers is none: the plan's steps
   hold the same examples for any number. The random state of a rank that there was not is derived from configuration, step and rank.
5. `Store.back_to` restores the newest calm checkpoint before a step, for the loop's way past bad data.

On the same kind of processor with the same number of threads and workers, a resumed run ends with the same bytes as one that never
stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model import manifest
from model.architecture import tensors
from model.errors import BiovlmError, CannotWriteError, ConfigError, InternalError, MissingInputError, RefusedError
from model.training.places import Entry, Folder, Place
from model.training.ranks import Ranks
from model.training.reporter import Reporter
from model.training.sharing import Sharing, Tensors
from model.training.writer import Writer

KIND = "step"
KEPT = 2
WAIT_SHARE, WAIT_SECONDS = 0.02, 1.0
"""How long steps may stand still in all so that checkpoints are written before the second step after them: this share of the time
since the start, and so many seconds for its beginning."""
PATIENCE_SECONDS = 450.0
"""Longest wait for the store, if nobody says otherwise: half of what the other workers wait for this one."""
ATTEMPT_BITS = 20
WEIGHTS, OPTIMIZER, RNG = (name + tensors.SUFFIX for name in ("weights", "optimizer", "rng"))


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on."""

    step: int = 0
    """Finished steps; 0 at the beginning."""
    journal: Mapping[str, Any] = field(default_factory=dict)
    """What the loop gave to `Store.save`."""


@dataclass(frozen=True)
class _Loaded:
    entry: Entry
    weights: Tensors
    moments: Tensors
    random: Tensors
    facts: Mapping[str, Any]


class Store:
    """The intermediate checkpoints of one run. All ranks call its methods together.

    Args:
        work: Folder of this run alone, or another place for it.
        configuration: JSON values that decide what the run does, the number of workers excepted.
        ranks: The workers; rank 0 writes.
        reporter: Hears what was set aside.
        patience_seconds: Longest wait for a checkpoint to be written.
    """

    def __init__(
        self,
        work: Path | Place,
        configuration: Mapping[str, Any],
        ranks: Ranks,
        reporter: Reporter,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.place: Place = Folder(work) if isinstance(work, Path) else work
        self._configuration = json.loads(manifest.canonical_json(configuration))  # as it will read back: lists, not tuples
        self._ranks = ranks
        self._reporter = reporter
        self._writer = Writer(self.place.label, patience_seconds)
        self._attempt = 0
        self._saved = 0
        self._began = self._safe = time.monotonic()
        self._calm: Entry | None = None
        self.world_sizes: list[list[int]] = [[0, ranks.world_size]]
        """[from this step on, so many workers]: the history of the run."""

    @property
    def waited_seconds(self) -> float:
        """How long steps have stood still for the store."""
        return self._writer.waited_seconds

    @property
    def age_seconds(self) -> float:
        """Of the state that a kill now would lead back to: since it was copied, or, before the first checkpoint, since this process
        began. Known to rank 0."""
        return time.monotonic() - self._safe

    def resume(self, sharing: Sharing) -> Resumed:
        """Claim the run, and restore the newest good checkpoint: weights, moments, random numbers.

        Raises:
            ConfigError: The newest good checkpoint belongs to another configuration.
            MissingInputError: There are checkpoints, and none is good.
            CannotWriteError: The place takes no checkpoints.
        """
        return self._take_up(sharing, lambda: self._choose(sharing.weights, self.place.entries()))

    def back_to(self, limit: int, sharing: Sharing) -> Resumed:
        """Restore the newest good calm checkpoint of at most `limit` finished steps, and forget those after it.

        Returns:
            As `resume`; step 0 if there is none, and then nothing has changed.
        """
        self.settle()

        def choose() -> _Loaded | None:
            entries = self.place.entries()
            return self._choose(sharing.weights, [entry for entry in entries if entry.step <= limit], calm=True)

        resumed = self._take_up(sharing, choose)
        if resumed.step and self._ranks.leads:
            self._remove([entry for entry in self.place.entries() if entry.step > resumed.step])
        return resumed

    def save(self, step: int, sharing: Sharing, journal: Mapping[str, Any] | None = None, calm: bool = True) -> None:
        """Copy the state after `step` finished steps, and write it in the background. See `failing` and `settle`.

        Args:
            step: Finished steps.
            sharing: Holds weights and moments.
            journal: JSON values that the loop wants back.
            calm: Whether nothing was wrong with the steps before; one can roll back to a calm checkpoint.
        """
        if step == self._saved:
            return
        states = self._ranks.gather(_random_state(sharing.device))
        weights, moments = sharing.state()
        self._saved = step
        if not self._ranks.leads:
            return
        self._writer.settle()  # before the copy: memory holds one
        entry, copied = Entry(step, self._attempt), time.monotonic()
        files = {
            WEIGHTS: _copy(weights),
            OPTIMIZER: _copy(moments),
            RNG: {str(rank): state.clone() for rank, state in enumerate(states)},
        }
        facts = {
            "step": step,
            "configuration": self._configuration,
            "world_sizes": [list(entry) for entry in self.world_sizes],
            "journal": json.loads(manifest.canonical_json(journal or {})),
            "calm": calm,
        }
        self._writer.submit(lambda: self._write(entry, files, facts, copied))

    def catch_up(self) -> None:
        """Called after each step, before `save`: what was copied before this step should be written by now."""
        allowed = WAIT_SECONDS + WAIT_SHARE * (time.monotonic() - self._began)
        self._writer.pause(allowed - self._writer.waited_seconds)

    @property
    def failing(self) -> bool:
        """True on rank 0 once a checkpoint could not be written; then all ranks call `settle`, which raises."""
        return self._writer.failure is not None

    def settle(self) -> None:
        """Wait for what is being written. CannotWriteError, InternalError, RefusedError on all ranks if it cannot be."""

        def wait() -> int:
            self._writer.settle()
            if self._writer.failure is not None:
                raise self._writer.failure
            return 0

        self._ranks.together(wait)

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it; alone, for a run that ends by an error of its own."""
        self._writer.settle()

    def clear(self) -> None:
        """Remove everything: the run is finished and its result stands elsewhere."""
        self._writer.settle()
        self.place.clear()

    def _take_up(self, sharing: Sharing, choose: Callable[[], _Loaded | None]) -> Resumed:
        """Claim an attempt, let rank 0 `choose`, and restore that on every rank."""
        chosen: list[_Loaded] = []

        def lead() -> int:
            self._attempt = self.place.claim()
            found = choose()
            if found is None:
                return 0
            self._check_configuration(found)
            chosen.append(found)
            return found.entry.step << ATTEMPT_BITS | found.entry.attempt

        code = self._ranks.together(lead)
        if not code:
            return Resumed()
        entry = Entry(code >> ATTEMPT_BITS, code & ((1 << ATTEMPT_BITS) - 1))
        found = chosen[0] if chosen else self._load(entry, sharing.weights)
        sharing.load(found.weights, found.moments, f"{self.place.label}/{entry.name}")
        self._take_random_state(found)
        self._take_world_size(found)
        self._saved = entry.step
        self._calm = entry if found.facts.get("calm") else None
        return Resumed(entry.step, found.facts.get("journal", {}))

    def _choose(self, learned: Tensors, entries: Sequence[Entry], calm: bool = False) -> _Loaded | None:
        """The newest of `entries` that verifies and can be read; others are set aside."""
        reasons = self.place.set_aside_before()
        for entry in entries:
            try:
                found = self._load(entry, learned)
            except InternalError:
                raise  # the store does not answer: that says nothing about the checkpoint
            except (BiovlmError, OSError) as error:
                reason = str(error).splitlines()[0]
                self.place.set_aside(entry, reason)
                self._reporter.note(f"checkpoint {entry.name} set aside: {reason}")
                reasons.append(f"{entry.name}: {reason}")
                continue
            if found.facts.get("calm") or not calm:
                return found
        if reasons and not calm:
            raise MissingInputError(
                f"no checkpoint in {self.place.label} is good: {'; '.join(reasons)}",
                "restore one of them; or remove the folder to start again from the beginning",
            )
        return None

    def _load(self, entry: Entry, learned: Tensors) -> _Loaded:
        """Everything of a checkpoint, verified: bytes, names, shapes, and that every number is finite."""
        with self.place.fetch(entry) as folder:
            record = manifest.verify(folder)
            if record.kind != KIND or record.facts.get("step") != entry.step:
                found = f"a {record.kind} of step {record.facts.get('step', 'none')}"
                raise RefusedError(
                    f"{entry.name} holds {found}, expected a {KIND} of step {entry.step}", "it was moved or renamed"
                )
            weights = tensors.read(folder / WEIGHTS)
            tensors.check_shapes(weights, learned, f"{entry.name}/{WEIGHTS}")
            moments = tensors.read(folder / OPTIMIZER)
            for values, name in ((weights, WEIGHTS), (moments, OPTIMIZER)):
                tensors.check_finite(values, f"{entry.name}/{name}")
            return _Loaded(entry, weights, moments, tensors.read(folder / RNG), record.facts)

    def _check_configuration(self, found: _Loaded) -> None:
        stored = found.facts.get("configuration")
        changes = differences(stored if isinstance(stored, dict) else {}, self._configuration)
        if changes:
            raise ConfigError(
                f"{self.place.label}/{found.entry.name} was made by another configuration; {len(changes)} fields differ: "
                f"{'; '.join(changes[:8])}",
                "go on with the former configuration, or choose another folder to start anew",
            )

    def _take_random_state(self, found: _Loaded) -> None:
        state = found.random.get(str(self._ranks.rank))
        if state is None:
            seed = manifest.digest_of([self._configuration, found.entry.step, self._ranks.rank])
            torch.manual_seed(int(seed[:15], 16))
        else:
            _set_random_state(state)

    def _take_world_size(self, found: _Loaded) -> None:
        stored = [list(pair) for pair in found.facts.get("world_sizes", [])] or [[0, self._ranks.world_size]]
        before, now = stored[-1][1], self._ranks.world_size
        if before != now:
            stored = [pair for pair in stored if pair[0] != found.entry.step] + [[found.entry.step, now]]
            self._reporter.note(
                f"{now} workers go on where {before} stopped: every step holds the same examples, sums are in another order"
            )
        self.world_sizes = stored

    def _write(self, entry: Entry, files: Mapping[str, Tensors], facts: dict[str, Any], copied: float) -> None:
        """In the background: make, seal, commit, and remove what is no longer needed."""
        with self.place.stage(entry) as folder:
            for name, values in files.items():
                tensors.write(folder / name, values)
                if tensors.names(folder / name) != values.keys():  # also refuses a file that is shorter than it says
                    raise CannotWriteError(f"{entry.name}/{name} is not what was written to it", "check the disk")
            manifest.seal(folder, KIND, facts=facts)
            self.place.commit(folder, entry)
        self._safe = copied
        if facts["calm"]:
            self._calm = entry
        kept = {entry, *self.place.entries()[:KEPT], *([self._calm] if self._calm else [])}
        self._remove([old for old in self.place.entries() if old not in kept])

    def _remove(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            try:
                self.place.remove(entry, self._attempt)
            except (OSError, CannotWriteError, InternalError) as error:
                self._reporter.note(f"cannot remove {entry.name}: {getattr(error, 'strerror', None) or type(error).__name__}")


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """`field: before -> after` for every leaf in which two JSON values differ, in the order of the fields."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]


def _copy(values: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in values.items()}


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

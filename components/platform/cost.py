"""What a step, a run or a version cost: time, GPU time, waiting, energy where the machine tells, bytes moved.

1. `Meter` stands around the work of a step; what it measured becomes the `Cost` in the step's record, its `finished` event and MLflow.
2. `of_run(events)` adds up what the steps of a run really did; a step that was reused cost nothing, and is told as saved.
3. `of_version(store, key)` adds up every step that a version was made by, each once, whichever run did it.

GPU time is what was taken from the pool, used or not: GPUs of all workers times the time they were held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from components.platform.energy import Energy
from components.platform.events import Event, EventType

if TYPE_CHECKING:
    from components.platform.store import Store

SCHEMA_VERSION = 1


class Cost(BaseModel):
    """What something cost."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of this layout.")
    wall_seconds: float = Field(
        default=0.0, ge=0, description="From the first look at the inputs to the result, waiting included."
    )
    queue_seconds: float = Field(
        default=0.0, ge=0, description="Of these, waiting for machines of a cluster, and for their start."
    )
    gpu_seconds: float = Field(default=0.0, ge=0, description="GPUs that were held, times how long.")
    energy_joules: float | None = Field(
        default=None, description="Of the whole machine in that time; empty where it does not tell."
    )
    energy_from: tuple[str, ...] = Field(default=(), description="Who counted: rapl, nvml.")
    bytes_received: int = Field(default=0, ge=0, description="From the shared store.")
    bytes_sent: int = Field(default=0, ge=0, description="To the shared store, before the result itself.")

    def __add__(self, other: Cost) -> Cost:
        """Both together. Energy is a sum only where both are known: half of it would look like a saving."""
        known = self.energy_joules is not None and other.energy_joules is not None
        return Cost(
            wall_seconds=self.wall_seconds + other.wall_seconds,
            queue_seconds=self.queue_seconds + other.queue_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            energy_joules=(self.energy_joules or 0) + (other.energy_joules or 0) if known else None,
            energy_from=tuple(sorted({*self.energy_from, *other.energy_from})) if known else (),
            bytes_received=self.bytes_received + other.bytes_received,
            bytes_sent=self.bytes_sent + other.bytes_sent,
        )

    @property
    def work_seconds(self) -> float:
        """Without waiting."""
        return self.wall_seconds - self.queue_seconds


def total(costs: Iterable[Cost]) -> Cost:
    """All together; nothing costs nothing."""
    found = list(costs)
    joined = found[0] if found else Cost(energy_joules=0.0)
    for cost in found[1:]:
        joined = joined + cost
    return joined


class Meter:
    """Measures what happens inside a `with` block."""

    def __init__(
        self, moved: Callable[[], tuple[int, int]], energy: Energy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`moved` gives the bytes received and sent so far; `clock` seconds."""
        self._moved, self._energy, self._clock = moved, energy or Energy(), clock

    def __enter__(self) -> Meter:
        self._before, self._began = self._moved(), self._clock()
        self._energy.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._energy.__exit__(*error)
        self._seconds, self._after = self._clock() - self._began, self._moved()

    def cost(self, gpus: float, work_seconds: float | None = None) -> Cost:
        """What it came to.

        Args:
            gpus: How many were held.
            work_seconds: How long a cluster says that it worked, out of the time measured here; None: all of it, on this machine.
        """
        worked = self._seconds if work_seconds is None else min(work_seconds, self._seconds)
        received, sent = (now - before for now, before in zip(self._after, self._before, strict=True))
        # What this machine took says nothing of the machines of a cluster, for which it waited.
        joules = self._energy.joules if work_seconds is None else {}
        return Cost(
            wall_seconds=self._seconds,
            queue_seconds=self._seconds - worked,
            gpu_seconds=gpus * worked,
            energy_joules=sum(joules.values()) if joules else None,
            energy_from=tuple(sorted(joules)),
            bytes_received=received,
            bytes_sent=sent,
        )


def of_run(log: Iterable[Event]) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """Step -> what it cost in this run; and of the steps that were reused, what that saved. Of attempts the last one counts."""
    spent: dict[str, Cost] = {}
    saved: dict[str, Cost] = {}
    for event in log:
        if "cost" in event.facts:
            where = saved if event.type is EventType.REUSED else spent
            where[event.step] = Cost.model_validate(event.facts["cost"])
    return spent, saved


def of_version(store: Store, key: str) -> tuple[Cost, int]:
    """What all steps behind a registration cost, and of how many that is not known.

    Args:
        store: Where the records are.
        key: Of the register step.
    """
    todo, seen = [f"steps/register/{key}"], set()
    costs: list[Cost] = []
    unknown = 0
    while todo:
        uri = todo.pop()
        if uri in seen:
            continue
        seen.add(uri)
        record = store.record_of(uri)
        if record is None or record.cost is None:
            unknown += 1
        else:
            costs.append(record.cost)
        todo += [source.uri for source in record.inputs.values()] if record else []
    return total(costs), unknown

"""Which optimizer steps are taken: the decision alone, as a pure function of the losses so far.

1. `Judge.objection(loss)` is asked before the optimizer moves, on every rank with the same number: a loss that is not finite, or that
   stands far above those of the last accepted steps, is not learned from. Far is measured by median and median deviation, which a
   few odd values cannot bend; only accepted, finite losses are in the window, and a window without any spread divides by nothing.
2. `Judge.record` writes down how the step went. A few steps may be left out; more than `max_skips` within `skip_window` say that the
   weights are spoilt or a part of the data is bad: ROLL_BACK, to a checkpoint before the first of them, and from there round the data
   of all of them (`behind`). If that happens a second time, GIVE_UP.
3. A slow rise of the loss is only told (`drifting`): it may be the data.
4. `state` goes into each checkpoint, so that a resumed run decides as an undisturbed one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from model.config import Guard

SIGMA_OF_MAD = 1.4826
"""A normal distribution's standard deviation, in median deviations."""
LEAST_SPREAD = 0.05
"""Of the median: where all losses are nearly equal, a change of less than this is no news."""


class Verdict(StrEnum):
    """What becomes of the run after a step."""

    TAKEN = "taken"
    SKIPPED = "skipped"
    ROLL_BACK = "roll_back"
    GIVE_UP = "give_up"


class Skip(NamedTuple):
    """A step that was not taken."""

    number: int
    """Of the step in the plan, from 0."""
    why: str
    suspects: list[int]
    """Indices of some of its examples, which do not depend on the number of workers."""


class Judge:
    """The history that decides.

    Args:
        limits: Recipe part.
        state: As `state` gave it; empty at the beginning.
    """

    def __init__(self, limits: Guard, state: Mapping[str, Any] | None = None) -> None:
        stored = state or {}
        self._limits = limits
        self._window: list[float] = list(stored.get("window", []))
        self._skips = [Skip(*skip) for skip in stored.get("skips", [])]
        self._warned = int(stored.get("warned", -limits.window))
        self.num_skips = int(stored.get("num_skips", 0))
        """Steps of the whole run that were not taken."""
        self.jumped: list[int] = list(stored.get("jumped", []))
        """[first, end): the steps of the plan that the run goes round, after it rolled back; empty if it did not."""

    def state(self) -> dict[str, Any]:
        """JSON values; finite numbers alone."""
        return {
            "window": list(self._window),
            "skips": [list(skip) for skip in self._skips],
            "warned": self._warned,
            "num_skips": self.num_skips,
            "jumped": list(self.jumped),
        }

    def objection(self, loss: float) -> str:
        """Why a step with this loss must not be taken; empty if it may."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._limits.spike is None or len(self._window) * 4 < self._limits.window:
            return ""
        median, spread = _centre(self._window)
        distance = (loss - median) / spread
        if distance <= self._limits.spike:
            return ""
        return f"the loss is {loss:.4g}, {distance:.1f} robust standard deviations above the last {len(self._window)}"

    def record(self, number: int, loss: float, norm: float, suspects: Sequence[int] = ()) -> Verdict:
        """Write down step `number` (from 0), with the norm of its gradient before clipping."""
        why = self.objection(loss)
        if not why and not math.isfinite(norm):
            why = f"the loss is {loss:.4g} and the norm of its gradient {norm}"
        if not why:
            self._window = [*self._window, loss][-self._limits.window :]
            return Verdict.TAKEN
        self.num_skips += 1
        self._skips = [*self.recent(number), Skip(number, why, list(suspects))]
        if len(self._skips) <= self._limits.max_skips:
            return Verdict.SKIPPED
        return Verdict.GIVE_UP if self.jumped else Verdict.ROLL_BACK

    def recent(self, number: int) -> list[Skip]:
        """The steps not taken among the last `skip_window` before step `number`."""
        return [skip for skip in self._skips if number - skip.number < self._limits.skip_window]

    @property
    def last_skips(self) -> Sequence[Skip]:
        """The steps not taken that the newest verdict looked at, oldest first."""
        return self._skips

    def jump(self, first: int, end: int) -> None:
        """Go round the steps from `first` up to `end`, exclusive, from now on."""
        self.jumped = [first, end]
        self._skips = []

    def behind(self, number: int) -> int:
        """`number`, or the first step behind what the run goes round."""
        inside = bool(self.jumped) and self.jumped[0] <= number < self.jumped[1]
        return self.jumped[1] if inside else number

    def drifting(self, number: int) -> bool:
        """Whether the loss has been rising; true at most once in a window."""
        half = self._limits.window // 2
        if len(self._window) < self._limits.window or number - self._warned < self._limits.window:
            return False
        median, spread = _centre(self._window[:half])
        rising = (statistics.median(self._window[half:]) - median) / spread > self._limits.drift
        self._warned = number if rising else self._warned
        return rising


def _centre(values: Sequence[float]) -> tuple[float, float]:
    """Median and robust standard deviation, which is never 0."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values)
    return median, max(SIGMA_OF_MAD * deviation, LEAST_SPREAD * abs(median), 1e-12)

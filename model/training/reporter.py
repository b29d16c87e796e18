"""Where numbers of a run go: one protocol, and the two reporters that need no platform.

1. The loop calls `metrics` after every optimizer step, `resumed` when it goes on from a checkpoint, `note` for what a person should
   know (a checkpoint set aside, a shortened mixture).
2. `ListReporter` keeps everything, for tests. `LineReporter` writes one JSON line for each call, and one short line for people.

Only rank 0 reports. Reporters get ids and numbers, never content of records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Reporter(Protocol):
    """What a training loop tells."""

    def metrics(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Numbers of a finished optimizer step.

        Args:
            step: From 1 to `total`.
            total: Optimizer steps of the whole run.
            values: Name -> finite number, e.g. `loss`, `learning_rate/connector`, `tokens_per_second`, `checkpoint_age_seconds` (what
                a kill now would cost); without `loss` after a step whose loss was no number. `skipped_steps` counts those not taken,
                once there are some.
        """

    def resumed(self, step: int) -> None:
        """The run goes on after `step` finished steps."""

    def note(self, text: str) -> None:
        """One line for people."""


class SilentReporter:
    """Tells nothing: for ranks other than 0."""

    def metrics(self, step: int, total: int, values: Mapping[str, float]) -> None: ...

    def resumed(self, step: int) -> None: ...

    def note(self, text: str) -> None: ...


class ListReporter:
    """Keeps everything in lists."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.resumes: list[int] = []
        self.notes: list[str] = []

    def metrics(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self.rows.append({"step": step, "total": total, **values})

    def resumed(self, step: int) -> None:
        self.resumes.append(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


class LineReporter:
    """JSON lines in a file, and a line on stderr every few steps.

    Args:
        path: File to append to; its folder is made.
        every: Steps between two lines on stderr.
    """

    def __init__(self, path: Path, every: int = 10) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")
        self._every = every

    def metrics(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._write({"event": "metrics", "step": step, "total": total, **values})
        if step == total or step % self._every == 0:
            speed = f"  {values['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in values else ""
            loss = f"{values['loss']:.4f}" if "loss" in values else "not finite"
            self._say(f"step {step:>5}/{total}  loss {loss}{speed}")

    def resumed(self, step: int) -> None:
        self._write({"event": "resumed", "step": step})
        self._say(f"resumed after step {step}")

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})
        self._say(text)

    def _write(self, row: Mapping[str, object]) -> None:
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text + "\n")

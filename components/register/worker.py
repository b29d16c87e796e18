"""What runs in a Ray Train worker for registration where the step itself has no torch: the export of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray.train

from components.platform import exports
from components.platform.workers import with_letters


def export(job: dict[str, Any]) -> None:
    """Make the export that `job` describes (components/platform/task.py)."""
    with_letters(job, lambda leads: _run(job))


def _run(job: dict[str, Any]) -> None:
    bases = {name: Path(path) for name, path in job["bases"].items()}
    exports.make(Path(job["subjects"]["checkpoint"]), bases, Path(job["final"]))
    ray.train.report({})

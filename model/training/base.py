"""Tiny base models for the demo, trained from a data set: a vision tower and a language model.

    python -m model.training.base tower    --data DIR --out DIR [--seed N] [--steps N] [--threads N]
    python -m model.training.base language --data DIR --out DIR [--seed N] [--steps N] [--threads N]

1. Only the split `train` is read. The tower learns by contrast with captions (base_tower), the language model the next token of
   answers (base_language).
2. Both go through the one training loop (loop) and are written as plain transformers folders, artifacts of kind `base`.
3. The same data, seed and number of threads give the same bytes on the same kind of processor; another kind may differ.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model import manifest
from model.config import Guard, Schedule
from model.data.loading import DataSet, open_dataset
from model.errors import BiovlmError, ExitCode, UsageError
from model.training.base_language import build_language
from model.training.base_lesson import Lesson
from model.training.base_tower import build_tower
from model.training.loop import Settings, Training, train
from model.training.optimizer import Group, Optimizer
from model.training.ranks import Ranks
from model.training.reporter import LineReporter, Reporter
from model.training.resume import Store
from model.training.sharing import Replicated

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 20
NO_MERCY = Guard(spike=None, max_skips=0)
"""Minutes long and without a checkpoint to go back to: a loss that is no number ends it."""


BUILDERS: dict[str, Callable[[DataSet, int, int | None], Lesson]] = {"tower": build_tower, "language": build_language}


def train_base(
    part: str, data: Path, out: Path, reporter: Reporter, seed: int = 0, steps: int | None = None
) -> manifest.Manifest:
    """Train one base model and write it.

    Args:
        part: "tower" or "language".
        data: Folder of a data set with captions and dialogues in its split `train`.
        out: Artifact folder to make or replace.
        reporter: Hears the loss of every step.
        seed: Of first weights and order.
        steps: Optimizer steps; empty takes what the demo needs.

    Returns:
        The manifest of `out`.

    Raises:
        UsageError: No such part. DataError, MissingInputError, RefusedError: The data set is not whole or lacks captions.
        DivergedError, CannotWriteError: As their classes say.
    """
    if part not in BUILDERS:
        raise UsageError(f"no base model is called {part!r}", f"choose one of {', '.join(BUILDERS)}")
    dataset = open_dataset(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lesson = BUILDERS[part](dataset, seed, steps)
        training = _training(lesson, out, reporter)
        loss = train(training).loss
        training.store.clear()
    facts = {
        "name": f"{dataset.manifest.facts.get('name', 'unnamed')}-{part}",
        "part": part,
        "licence": dataset.manifest.facts.get("licence", "unknown"),
        "synthetic": bool(dataset.manifest.facts.get("synthetic", False)),
        "seed": seed,
        "steps": len(lesson.plan),
        "last_loss": round(loss, 4),
    }
    with manifest.commit(out, "base", {"data": dataset.manifest.digest}, facts) as folder:
        lesson.write(folder)
    return manifest.read(out)


def _training(lesson: Lesson, out: Path, reporter: Reporter) -> Training:
    """The loop's view of a lesson: one process, short enough to need no checkpoint on the way."""
    ranks = Ranks()
    total = len(lesson.plan)
    return Training(
        objective=lesson.objective,
        plan=lesson.plan,
        sharing=Replicated(Optimizer([Group("base", lesson.rate, lesson.weights)], BETAS, WEIGHT_DECAY), ranks),
        settings=Settings(Schedule.COSINE, min(WARMUP_STEPS, total), clip_norm=1.0, checkpoint_every=total, guard=NO_MERCY),
        store=Store(out.parent / f".{out.name}.work", {}, ranks, reporter),
        reporter=reporter,
        ranks=ranks,
        stop=lambda: False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (model/errors.py)."""
    parser = argparse.ArgumentParser(prog="python -m model.training.base", description="Train a tiny base model.")
    parser.add_argument("part", choices=tuple(BUILDERS), help="which one")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set with captions and dialogues")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="artifact folder to make or replace")
    parser.add_argument("--seed", type=int, default=0, help="of first weights and order (default 0)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: what the demo needs)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1); part of what fixes the bytes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        result = train_base(
            options.part, options.data, options.out, LineReporter(Path(os.devnull), every=50), options.seed, options.steps
        )
    except BiovlmError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    sys.stdout.write(f"{options.out} {result.digest}\n")
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main())

"""Train one stage on this machine, with nothing but the model's own needs installed.

    python -m model.training RECIPE --stage align --out DIR --data phantom=DIR --base tower=DIR --base language=DIR
    torchrun --nproc-per-node 2 -m model.training ...    the same with two workers

1. The recipe is read and cut; `--set a.b=1` changes it for a trial.
2. `run_stage` trains, writing metrics to DIR/metrics.jsonl, intermediate checkpoints to DIR/work and the result to DIR/checkpoint.
3. Ctrl-C and SIGTERM save a checkpoint and end with exit code 75; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from model import recipe
from model.config import STAGE_NAMES, TrainSlice
from model.errors import BiovlmError, ExitCode, UsageError
from model.manifest import failed_write
from model.training.ranks import Ranks, joined
from model.training.reporter import LineReporter
from model.training.stage import StageInputs, run_stage
from model.training.stops import asked_by_signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (model/errors.py)."""
    with asked_by_signal() as stop:
        out = Path()
        try:
            options = _parser().parse_args(arguments)
            out = options.out
            return _train(options, stop)
        except Exception as error:
            letter = error if isinstance(error, BiovlmError) else failed_write(out, error)
            if letter is None:
                raise  # a defect: its trace is worth more than a letter
            sys.stderr.write(f"{letter}\n")
            return int(letter.exit_code)


def _train(options: argparse.Namespace, stop: Callable[[], bool]) -> int:
    whole = recipe.load(options.recipe, options.recipes, options.set)
    piece = TrainSlice.model_validate(recipe.slices(whole)[options.stage])
    # As many threads as a worker of the platform gets: results do not depend on where a stage runs, and a busy machine is not slowed
    # down by threads that wait for each other.
    torch.set_num_threads(max(1, int(piece.resources.cpus_per_worker)))
    inputs = StageInputs(
        sets=_pairs(options.data, "--data"),
        bases=_pairs(options.base, "--base"),
        parent=options.parent,
        max_quarantined=whole.data.max_quarantined,
        max_image_pixels=whole.data.max_image_pixels,
    )
    reporter = LineReporter(options.out / "metrics.jsonl")
    with joined(piece.resources.gpus_per_worker > 0):
        result = run_stage(piece, inputs, options.out / "work", options.out / "checkpoint", reporter, stop)
        leads = Ranks.current(torch.device("cpu")).leads
    if leads:
        sys.stdout.write(f"{options.out / 'checkpoint'} {result.digest}\n")
    return int(ExitCode.DONE)


class _Parser(argparse.ArgumentParser):
    """Ends with the house's exit code for usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help lists the options")


def _pairs(given: Sequence[str], option: str) -> dict[str, Path]:
    """`NAME=DIR` strings as a mapping."""
    pairs = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"cannot read {option} {text!r}", f"write it as {option} NAME=DIR")
        pairs[name] = Path(folder)
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m model.training", description="Train one stage on this machine.")
    parser.add_argument("recipe", help="path of a recipe, or name of one in --recipes")
    parser.add_argument("--stage", required=True, choices=STAGE_NAMES, help="which stage")
    parser.add_argument("--out", required=True, type=Path, help="folder of this run")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="a data set; may be repeated")
    parser.add_argument("--base", action="append", default=[], metavar="NAME=DIR", help="a base model; may be repeated")
    parser.add_argument("--parent", type=Path, help="checkpoint of the stage before")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a field of the recipe")
    parser.add_argument("--recipes", type=Path, default=Path("pipelines/recipes"), help="folder of named recipes")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What everybody waits for, each alone: the command's start, the digests of the code, a batch plan, a comparison of images."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from components.platform import code
from model.data.audit import leakage
from model.data.packing import Metadata
from model.data.sampling import Plan, Rules

REPEATS = 3
EXAMPLES, IMAGES = 200_000, 1000


def measure() -> dict[str, float]:
    """Least seconds of three; of the processor, but for the command, which is another process."""
    lengths = np.random.default_rng(0).integers(20, 1000, EXAMPLES)
    sizes = Metadata(lengths, *(np.zeros_like(lengths) for _ in range(3)))
    with tempfile.TemporaryDirectory() as folder:
        images = _images(Path(folder))
        return {
            "biovlm_help_seconds": _least(_start_command, time.perf_counter),
            "code_digests_seconds": _least(_digest_code),
            f"plan_{EXAMPLES}_examples_seconds": _least(lambda: Plan(sizes, Rules(65_536, 8192), 8, seed=0)),
            f"compare_{IMAGES}_images_seconds": _least(lambda: leakage({"train": images[100:], "test": images[:100]})),
        }


def _least(act: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    found = []
    for _ in range(REPEATS):
        began = clock()
        act()
        found.append(clock() - began)
    return min(found)


def _start_command() -> None:
    subprocess.run([str(Path(sys.executable).with_name("biovlm")), "--help"], stdout=subprocess.DEVNULL, check=True)


def _digest_code() -> None:
    code.digest.cache_clear()
    for kind in code.CODE:
        code.digest(kind)


def _images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.bmp" for number in range(IMAGES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return paths

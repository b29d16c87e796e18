"""How full packed rows are on a radiology mix, how even in images, and how long the plan takes, against plain yardsticks.

The mix: 30 % questions without an image, 45 % one view, 20 % two, 5 % four, 576 tokens a view, and a report or answer behind it; drawn
so that random batches of 8 waste about 57 % on padding. Ours is `model.data.sampling.Plan` as training uses it, packing `rows`.
Yardsticks: best-fit-decreasing without a budget of images, batches of 8 grouped by length, random batches of 4, 8 and 16.
"""

from __future__ import annotations

import bisect
import time

import numpy as np

from model.config import Packing
from model.data.packing import Metadata
from model.data.sampling import Plan, Rules

DOCUMENTS = (2_000, 8_192)
ROWS = (4_096, 8_192)
VIEW_TOKENS = 576
VIEWS, SHARES = (0, 1, 2, 4), (0.30, 0.45, 0.20, 0.05)
PLANNED = 10_000
GROUPED = 50
"""Batches among which a sampler that groups by length sorts, as transformers' does."""


def measure() -> dict[str, float]:
    """Fill (share of positions that are real), images a row (largest over mean), seconds; names say what of what."""
    found: dict[str, float] = {}
    for count in DOCUMENTS:
        tokens, images = radiology_mix(count, seed=count)
        found[f"mix_{count}_mean_tokens"] = float(tokens.mean())
        for size in (4, 8, 16):
            found[f"mix_{count}_random_batches_of_{size}_fill"] = padded_fill(random_order(count), tokens, size)
        found[f"mix_{count}_grouped_batches_of_8_fill"] = padded_fill(grouped_order(tokens, 8), tokens, 8)
        for row in ROWS:
            began = time.process_time()
            rows = best_fit(tokens, row)
            took = time.process_time() - began
            found |= {
                f"mix_{count}_row_{row}_plain_{name}": value
                for name, value in {**about(rows, tokens, images, row), "seconds": took}.items()
            }
            rows, took = ours(tokens, images, row)
            found |= {
                f"mix_{count}_row_{row}_ours_{name}": value
                for name, value in {**about(rows, tokens, images, row), "seconds": took}.items()
            }
    tokens, images = radiology_mix(PLANNED, seed=1)
    found[f"ours_plan_of_{PLANNED}_seconds"] = min(ours(tokens, images, 4_096)[1] for _ in range(3))
    return found


def radiology_mix(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count,) tokens and (count,) views of documents drawn from the mix."""
    rng = np.random.default_rng(seed)
    images = rng.choice(VIEWS, count, p=SHARES)
    text = np.where(images == 0, rng.lognormal(np.log(90), 0.5, count), rng.lognormal(np.log(100), 0.45, count))
    return VIEW_TOKENS * images + np.maximum(text, 12).astype(np.int64), images


def ours(tokens: np.ndarray, images: np.ndarray, row: int) -> tuple[list[list[int]], float]:
    """Rows of the first epoch, and the processor seconds of the plan."""
    metadata = Metadata(tokens, images, VIEW_TOKENS * images, np.arange(len(tokens)))
    began = time.process_time()
    plan = Plan(metadata, Rules(row, row, Packing.ROWS), 1, seed=0)
    took = time.process_time() - began
    return [list(passed) for step in plan for rank in step for passed in rank], took


def best_fit(tokens: np.ndarray, row: int) -> list[list[int]]:
    """Best-fit-decreasing by tokens alone: each document, the longest first, into the fullest row with room for it."""
    room: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for index in np.argsort(-tokens, kind="stable").tolist():
        size = int(tokens[index])
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            rows.append([])
            left, number = row, len(rows) - 1
        else:
            left, number = room.pop(place)
        rows[number].append(index)
        bisect.insort(room, (left - size, number))
    return rows


def about(rows: list[list[int]], tokens: np.ndarray, images: np.ndarray, row: int) -> dict[str, float]:
    """Fill, and the largest number of images of a row over their mean, without the last row, which holds what is left."""
    held = np.array([images[members].sum() for members in rows])
    return {
        "fill": float(tokens.sum() / (len(rows) * row)),
        "rows": float(len(rows)),
        "images_max_over_mean": float(held.max() / held.mean()),
    }


def padded_fill(order: np.ndarray, tokens: np.ndarray, size: int) -> float:
    """Share of real tokens in batches of `size` in this order, padded to their longest."""
    batches = [tokens[order[start : start + size]] for start in range(0, len(order), size)]
    return float(tokens.sum() / sum(int(batch.max()) * len(batch) for batch in batches))


def random_order(count: int) -> np.ndarray:
    """A shuffle."""
    return np.random.default_rng(0).permutation(count)


def grouped_order(tokens: np.ndarray, size: int) -> np.ndarray:
    """A shuffle, sorted by length inside stretches of `GROUPED` batches."""
    order, stretch = random_order(len(tokens)), GROUPED * size
    pieces = [order[start : start + stretch] for start in range(0, len(order), stretch)]
    return np.concatenate([piece[np.argsort(-tokens[piece], kind="stable")] for piece in pieces])

"""How often the gate passes a model that is as good as its champion, by the size of the benchmark and the margin of non-inferiority.

    python -m benchmarks gate_power

1. Two models answer the same n questions, two an image. They differ in right or wrong on 10 % of them (the discordance that two trainings
   of one recipe on slightly other data have), by chance: `equal` in half of those for each side; `worse` so that the candidate is truly
   worse by the margin.
2. The gate's own rule (`comparison.shown`) decides on the interval of the paired bootstrap, in many rounds.
3. `pass_*` is the share of equal candidates that pass (power: more is better); `wrong_*` that of candidates worse by the whole margin
   (about 2.5 % by construction, whatever n is).

No model and no data set is needed. What this leaves out: answers about one image that go wrong together, which need more images.
"""

from __future__ import annotations

import numpy as np

from model.evaluation.bootstrap import Draws
from model.evaluation.comparison import shown
from model.evaluation.verdict import Outcome

SIZES = (251, 451, 1061, 2000, 6719)
"""VQA-RAD's closed test questions, all of VQA-RAD's, SLAKE-en's, a hospital's own set, PathVQA's."""
MARGINS = (0.01, 0.02, 0.03, 0.05)
DISCORDANCE = 0.10
PER_IMAGE = 2
ROUNDS, SAMPLES, CONFIDENCE = 400, 1000, 0.95


def passed(items: int, margin: float, loss: float, rounds: int = ROUNDS, samples: int = SAMPLES, seed: int = 0) -> float:
    """Share of candidates that pass.

    Args:
        items: Of the benchmark.
        margin: Of the gate.
        loss: By how much the candidates are truly worse, at most the discordance.
        rounds: Candidates that are tried.
        samples: Draws of the bootstrap.
        seed: Of the candidates.
    """
    chances = ((DISCORDANCE - loss) / 2, (DISCORDANCE + loss) / 2)
    differences = np.random.default_rng(seed).choice([1.0, -1.0, 0.0], size=(items, rounds), p=[*chances, 1 - DISCORDANCE])
    groups = [str(number // PER_IMAGE) for number in range(items)]
    found = Draws(groups, samples, CONFIDENCE).intervals(differences.tolist(), groups)
    return sum(shown(one, -margin, above=False) is Outcome.PASSED for one in found) / rounds


def measure() -> dict[str, float]:
    """Shares by size and margin."""
    shares = {}
    for items in SIZES:
        for margin in MARGINS:
            shares[f"pass_{items}_items_margin_{margin}"] = passed(items, margin, 0.0)
            shares[f"wrong_{items}_items_margin_{margin}"] = passed(items, margin, margin)
    return shares

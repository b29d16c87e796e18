"""The gate's default margin decides on benchmarks of the size that there are."""

from __future__ import annotations

from benchmarks.gate_power import passed
from model.config import Promotion

MARGIN = Promotion().max_loss_to_champion


def test_on_a_thousand_items_an_equal_candidate_mostly_passes_and_one_worse_by_the_margin_hardly_ever():
    assert passed(1000, MARGIN, 0.0, rounds=100, samples=200) >= 0.7
    assert passed(1000, MARGIN, MARGIN, rounds=100, samples=200) <= 0.08


def test_a_hundredth_would_leave_most_equal_candidates_undecided():
    assert passed(1000, 0.01, 0.0, rounds=100, samples=200) <= 0.3

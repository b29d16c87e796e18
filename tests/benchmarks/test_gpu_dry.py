"""What of the GPU measurements a CPU can run."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from benchmarks.onegpu import attention, shapes, steps


def test_every_part_runs_dry_and_reports_a_time():
    found = gpu.run(list(gpu.PARTS), shapes.DRY)
    assert set(found) == set(gpu.PARTS)
    assert found["g2"]["ours_160"]["ms"] > 0
    assert found["g4"]["cached"]["mfu"] > 0
    assert found["shared"]["shared_image"]["questions_per_second"] > 0


def test_packed_forms_are_exact_and_isolated_and_a_plainly_causal_one_is_neither():
    row = shapes.Row(((0, 30, ()), (30, 12, (6, 8)), (56, 8, ())), 64)
    mask = shapes.dense_mask(row, "cpu")

    def form(kept):
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept, enable_gqa=True)

    right = attention._one_form(form(mask), row, shapes.DRY, check=True)
    wrong = attention._one_form(form(torch.ones_like(mask).tril()), row, shapes.DRY, check=True)
    assert right["gradient_across_documents"] == 0
    assert right["error_vs_float64"] < 1e-5  # float32 against float64
    assert wrong["gradient_across_documents"] > 0
    assert wrong["error_vs_float64"] > 1e-2


def test_branches_take_up_their_positions_where_the_trunk_ends():
    document, branch, position = shapes.Row(((0, 3, (2, 2)), (7, 2, ())), 9).numbered("cpu")
    assert document.tolist() == [0] * 7 + [1] * 2
    assert branch.tolist() == [0, 0, 0, 1, 1, 2, 2, 0, 0]
    assert position.tolist() == [0, 1, 2, 3, 4, 3, 4, 0, 1]


def test_our_form_of_a_step_has_the_loss_of_transformers_own():
    model = steps.make_model(shapes.DRY.big_tower, shapes.DRY.big, shapes.DRY)
    data = steps.work(model.base_model.model, shapes.DRY, None, 2, 24, 8)
    model.eval()
    ours, theirs = steps.our_step(model, data, shapes.DRY), steps.their_step(model, data)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)  # sums in another order

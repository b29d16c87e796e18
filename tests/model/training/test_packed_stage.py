"""Packing in a whole stage: the same learning, in fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from model.architecture import packed, tensors
from model.config import Packing
from model.errors import ConfigError, InternalError, PreemptedError
from model.training.reporter import ListReporter
from model.training.stage import StageInputs, run_stage
from tests.model.tiny_stages import LORA, piece, stop_after

PACKED = [Packing.ROWS, Packing.SHARED_IMAGE]
ROW = 512
"""Tokens: as long as the longest example."""
NO_DROPOUT = LORA | {"dropout": 0.0}


def learned(inputs: StageInputs, root: Path, packing: Packing, **changes: Any) -> tuple[dict[str, torch.Tensor], ListReporter]:
    """What a stage learns, and what it told."""
    reporter = ListReporter()
    run_stage(
        piece("instruct", packing=packing, **{"micro_batch_tokens": ROW} | changes),
        inputs,
        root / "work",
        root / "final",
        reporter,
    )
    folder = root / "final"
    return {
        **tensors.read(folder / "connector.safetensors"),
        **tensors.read(folder / "adapters/1-instruct/adapter_model.safetensors"),
    }, reporter


@pytest.mark.parametrize("packing", PACKED)
def test_steps_of_the_same_examples_teach_the_same(inputs: StageInputs, tmp_path: Path, packing: Packing) -> None:
    """Each step holds all examples, so the order cannot differ; what is left is the arithmetic."""
    changes = {"batch_tokens": 10**6, "micro_batch_tokens": 2048, "epochs": 3, "lora": NO_DROPOUT}
    one, told = learned(inputs, tmp_path / "none", Packing.NONE, **changes)
    two, packed_told = learned(inputs, tmp_path / "packed", packing, **changes)
    assert len(told.rows) == len(packed_told.rows) == 3
    for before, after in zip(told.rows, packed_told.rows, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert after["gradient_norm"] == pytest.approx(before["gradient_norm"], rel=1e-4)
        assert after["examples"] == before["examples"]
    for name, tensor in one.items():
        # Adam divides by the size of a gradient, so where that is nearly zero its rounding shows.
        assert functional.mse_loss(two[name], tensor).sqrt() < 1e-4 * tensor.square().mean().sqrt() + 1e-6, name
    assert packed_told.rows[0]["padding_share"] == 0


def test_a_shared_image_is_computed_once(inputs: StageInputs, tmp_path: Path) -> None:
    changes = {"epochs": 0.3, "data": [{"set": "phantom"}], "micro_batch_tokens": 2048, "batch_tokens": 2048}
    _, rows = learned(inputs, tmp_path / "rows", Packing.ROWS, **changes)
    _, shared = learned(inputs, tmp_path / "shared", Packing.SHARED_IMAGE, **changes)
    assert {row["sharing"] for row in rows.rows} == {1.0}
    assert min(row["sharing"] for row in shared.rows) > 1.02  # an image is 4 tokens of some 80 here


@pytest.mark.parametrize("packing", PACKED)
def test_a_resumed_packed_run_ends_with_the_same_bytes(inputs: StageInputs, tmp_path: Path, packing: Packing) -> None:
    wanted = piece("instruct", packing=packing, micro_batch_tokens=ROW, epochs=0.5)
    whole = run_stage(wanted, inputs, tmp_path / "a", tmp_path / "whole", ListReporter())
    for steps in (1, 2):
        with pytest.raises(PreemptedError):
            run_stage(wanted, inputs, tmp_path / "b", tmp_path / "resumed", ListReporter(), stop_after(steps))
    assert run_stage(wanted, inputs, tmp_path / "b", tmp_path / "resumed", ListReporter()).digest == whole.digest


@pytest.mark.parametrize("packing", PACKED)
def test_the_first_batch_is_audited_and_the_result_told(inputs: StageInputs, tmp_path: Path, packing: Packing) -> None:
    _, reporter = learned(inputs, tmp_path, packing, epochs=0.1)
    (note,) = [note for note in reporter.notes if note.startswith("first batch")]
    assert "100.0% of the loss on the assistant's text" in note
    assert "is blind to 0 positions" not in note


def test_a_leak_between_documents_ends_the_run_before_its_first_step(
    inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(module: object, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    monkeypatch.setattr(packed, "attend", leaking)
    reporter = ListReporter()
    wanted = piece("instruct", packing="rows", micro_batch_tokens=ROW)
    with pytest.raises(InternalError, match=r"packing is not isolated: \d+ of \d+ positions outside a document"):
        run_stage(wanted, inputs, tmp_path / "work", tmp_path / "final", reporter)
    assert reporter.rows == []


def test_a_row_shorter_than_an_example_is_refused_before_the_first_step(inputs: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"record '.*' has \d+ tokens, a packed row holds 100; \d+ of \d+ records are larger"):
        run_stage(
            piece("instruct", packing="rows", micro_batch_tokens=100), inputs, tmp_path / "w", tmp_path / "f", ListReporter()
        )

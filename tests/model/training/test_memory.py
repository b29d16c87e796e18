"""The choice of what to keep, as arithmetic; and that computing again changes no gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import Memory, Model, Resources, Stage
from model.errors import ConfigError
from model.training import memory, placing
from model.training.reporter import ListReporter
from model.training.stage import StageInputs, run_stage
from tests.model.tiny_bases import model_settings
from tests.model.tiny_stages import piece

GIB = 2**30
GPU = Resources(gpus_per_worker=1)
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False,
}  # fmt: skip
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}


def stage(**changes: Any) -> Stage:
    values = {
        "data": [{"set": "a"}],
        "trainable": ["connector", "language_lora"],
        "learning_rates": {"connector": 1e-3, "language_lora": 1e-4},
        "lora": {"rank": 64},
        "precision": "bfloat16",
        "packing": "rows",
        "batch_tokens": 65_536,
        "micro_batch_tokens": 8192,
    }
    return Stage.model_validate(values | changes)


def settings(**changes: Any) -> Model:
    return model_settings(context_tokens=4096, **changes)


def chosen(budget_gib: float, workers: int = 1, **changes: Any) -> memory.Choice:
    shapes = memory.shapes_of(LLAMA_8B, CLIP_L)
    return memory.choose(
        shapes, settings(), stage(**changes), Resources(workers=workers, gpus_per_worker=1), int(budget_gib * GIB)
    )


def test_the_weights_of_a_known_model_are_counted_right() -> None:
    shapes = memory.shapes_of(LLAMA_8B, {"vision_config": CLIP_L})
    values = shapes.blocks * shapes.block_values + 2 * shapes.vocabulary * shapes.width
    assert values == 8_030_261_248 - 4096  # Llama-3-8B, without the last norm
    assert 303e6 < shapes.tower_values < 305e6
    found = memory.estimate(shapes, settings(), stage(), GPU)
    assert found.weights / GIB == pytest.approx(15.6, abs=0.2)
    assert found.moments == 2 * found.gradients


def test_no_more_blocks_than_needed_are_computed_again() -> None:
    whole = chosen(140)
    assert whole.recomputed == 0
    assert whole.needed_bytes == whole.kept_bytes
    budgets = [70, 60, 50, 40, 30]
    found = [chosen(budget) for budget in budgets]
    counts = [choice.recomputed for choice in found]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] <= 32
    shapes = memory.shapes_of(LLAMA_8B, CLIP_L)
    each = memory.estimate(shapes, settings(), stage(), GPU)
    for choice in found:
        assert choice.needed_bytes <= choice.budget_bytes < each.total(choice.recomputed - 1)


def test_the_recipe_may_have_decided_already() -> None:
    assert chosen(30, memory="keep").recomputed == 0
    assert chosen(140, memory="recompute").recomputed == 32


def test_what_does_not_fit_is_refused_with_ways_out_that_fit() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(20)
    assert "even if all 32 blocks are computed again" in caught.value.message
    ways = caught.value.hint.removeprefix("set ").split("; or set ")
    assert ways[0].startswith("micro_batch_tokens=")
    micro = int(ways[0].partition("=")[2])
    assert chosen(20, micro_batch_tokens=micro, batch_tokens=65_536).needed_bytes <= 20 * GIB
    with pytest.raises(ConfigError, match="micro|strategy|language model"):
        chosen(8)


def test_with_the_smallest_passes_only_sharing_out_weights_helps() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(16.5, micro_batch_tokens=1024)
    assert "strategy=zero3 with 2 workers" in caught.value.hint
    assert chosen(16.5, workers=2, micro_batch_tokens=1024, strategy="zero3").recomputed >= 0


def test_a_config_without_a_size_is_named() -> None:
    with pytest.raises(ConfigError, match="no num_hidden_layers"):
        memory.shapes_of({key: value for key, value in LLAMA_8B.items() if key != "num_hidden_layers"}, CLIP_L)


@pytest.mark.parametrize("packing", ["none", "rows", "shared_image"])
def test_computing_again_ends_with_the_same_bytes_with_dropout_and_packing(
    inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    """The loop's own steps: LoRA with dropout, so a block that drew other random numbers the second time would be seen."""
    runs: list[int] = []
    blocks = placing.recompute

    def some(assistant: Any, count: int) -> None:
        layers = assistant.model.model.language_model.layers
        for layer in layers:
            layer.input_layernorm.register_forward_pre_hook(lambda *_: runs.append(1))
        blocks(assistant, count)

    monkeypatch.setattr(placing, "recompute", some)
    digests, passes = {}, {}
    for count, choice in ((0, Memory.KEEP), (1, Memory.AUTO), (2, Memory.RECOMPUTE)):
        monkeypatch.setattr(memory, "_fewest", lambda *_: 1)
        runs.clear()
        wanted = piece("instruct", epochs=0.2, packing=packing, batch_tokens=1024, micro_batch_tokens=512, memory=choice)
        reporter = ListReporter()
        record = run_stage(wanted, inputs, tmp_path / "work", tmp_path / str(count), reporter)
        digests[count] = [entry.sha256 for entry in record.files]
        passes[count] = len(runs)
        assert any(note.startswith("memory: ") for note in reporter.notes)
    assert digests[0] == digests[1] == digests[2]
    assert passes[0] < passes[1] < passes[2], "one block ran twice, then both did"


def test_dropout_that_is_drawn_anew_would_be_seen(inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    careless = placing.partial
    for keywords in ({}, {"preserve_rng_state": False}):
        monkeypatch.setattr(placing, "partial", lambda act, keywords=keywords, **given: careless(act, **given, **keywords))
        wanted = piece("instruct", epochs=0.2, memory="recompute")
        found.append(
            run_stage(wanted, dataclasses.replace(inputs), tmp_path / "work", tmp_path / str(len(found)), ListReporter())
        )
    assert found[0].digest != found[1].digest
    assert torch.is_grad_enabled()

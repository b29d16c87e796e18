from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.architecture.assembly import Assistant, build
from model.architecture.joint import encode
from model.config import TrainSlice
from model.errors import ConfigError, InternalError
from model.training.loop import Training
from model.training.material import opened
from model.training.ranks import Ranks
from model.training.reporter import ListReporter
from model.training.stage import StageInputs, _assemble
from model.training.trainable import prepare
from tests.model.tiny_bases import IMAGE_SIZE, model_settings
from tests.model.tiny_stages import piece

CONNECTOR = {f"model.multi_modal_projector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")}
LORA = {
    f"model.language_model.layers.{layer}.{block}.{name}.lora_{half}.default.weight"
    for layer in (0, 1)
    for block, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
    for name in (f"{letter}_proj" for letter in names)
    for half in "AB"
}


def learning(assistant: Assistant) -> set[str]:
    return {name for name, weight in assistant.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("stage", "expected"), [("align", CONNECTOR), ("instruct", CONNECTOR | LORA), ("task", LORA)])
def test_exactly_the_named_parts_learn(bases: dict[str, Path], stage: str, expected: set[str]) -> None:
    settings = piece(stage).stage
    assistant, groups = prepare(build(model_settings(), bases, 0), settings, 0)
    assert learning(assistant) == expected
    assert {name for group in groups for name in group.weights} == expected
    assert [(group.name, group.rate) for group in groups] == [
        (part, settings.learning_rates[part]) for part in settings.trainable
    ]
    assert assistant.model.config.use_cache is False
    assert not any(module.training for module in assistant.model.model.vision_tower.modules())


def test_of_a_linear_connector_the_identity_stays(bases: dict[str, Path]) -> None:
    assistant, _ = prepare(build(model_settings(connector={"kind": "linear"}), bases, 0), piece().stage, 0)
    assert learning(assistant) == {name for name in CONNECTOR if "linear_1" in name}


def assembled(slice_: TrainSlice, inputs: StageInputs, work: Path) -> tuple[Assistant, Training]:
    """A stage on the CPU, ready for its first step."""
    sources = opened(slice_, inputs.sets, {}, 0.02)
    assistant, training, _ = _assemble(slice_, inputs, sources, {"piece": {}}, torch.device("cpu"), Ranks(), ListReporter(), work)
    return assistant, training


def test_after_steps_only_those_parts_have_changed(inputs: StageInputs, tmp_path: Path) -> None:
    for stage in ("align", "instruct", "task"):
        slice_ = piece(stage)
        assistant, training = assembled(slice_, inputs, tmp_path)
        before = {name: weight.detach().clone() for name, weight in assistant.model.named_parameters()}
        for micro in training.plan[0][0][:1]:
            for _ in range(2):  # at first B is zero, so A has no gradient
                training.objective.loss_sum(micro).backward()
                training.sharing.optimizer.apply(1.0)
        changed = {name for name, weight in assistant.model.named_parameters() if not torch.equal(weight, before[name])}
        assert changed == learning(assistant)


def test_no_gradient_reaches_tower_or_frozen_weights(inputs: StageInputs, tmp_path: Path) -> None:
    slice_ = piece("instruct")
    assistant, training = assembled(slice_, inputs, tmp_path)
    training.objective.loss_sum(training.plan[0][0][0]).backward()
    frozen = [weight for weight in assistant.model.parameters() if not weight.requires_grad]
    assert all(weight.grad is None for weight in frozen)
    assert encode(assistant.model, torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)).grad_fn is None


def test_the_adapter_comes_from_the_seed(bases: dict[str, Path]) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(prepare(build(model_settings(), bases, 0), piece("task").stage, seed)[1][0].weights.values())

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_adapter_that_is_not_merged_is_a_defect(bases: dict[str, Path]) -> None:
    settings = piece("task").stage
    assistant, _ = prepare(build(model_settings(), bases, 0), settings, 0)
    with pytest.raises(InternalError, match="not merged"):
        prepare(assistant, settings, 0)


def test_unknown_targets_are_refused(bases: dict[str, Path]) -> None:
    lora = piece("task").stage.lora
    assert lora is not None
    settings = piece("task").stage.model_copy(update={"lora": lora.model_copy(update={"targets": ("c_attn",)})})
    with pytest.raises(ConfigError, match="c_attn"):
        prepare(dataclasses.replace(build(model_settings(), bases, 0)), settings, 0)

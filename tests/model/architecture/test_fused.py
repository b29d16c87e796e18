"""Cheaper layers compute what PEFT and transformers compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.architecture import adapters, fused, lora_products, packed
from model.architecture.assembly import Assistant, build
from model.architecture.heads import attended, rotated
from model.config import Lora
from model.errors import ConfigError
from tests.model.architecture.test_last_block import DOCUMENTS, FAMILIES, language
from tests.model.tiny_bases import model_settings

CLOSE = 1e-5
"""Relative to the largest value: float32 rounds a merged weight as it rounds any product."""


def with_adapter(bases: dict[str, Path], dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Assistant:
    """With an adapter whose B is not zero, as it is after the first step."""
    assistant = adapters.attach(
        build(model_settings(), bases, seed=0, dtype=dtype), Lora(rank=4, alpha=8, dropout=dropout), seed=1
    )
    with torch.no_grad():
        for name, weight in adapters.parameters(assistant).items():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    assistant.model.train()
    return assistant


def outcome(assistant: Assistant, frozen_inputs: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0), requires_grad=not frozen_inputs)
    states = assistant.model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    weights = {name: weight for name, weight in assistant.model.named_parameters() if weight.requires_grad}
    asked = [*weights.values()] + ([] if frozen_inputs else [inputs])
    gradients = torch.autograd.grad(states.pow(3).sum(), asked, allow_unused=True)
    return states, {name: value for name, value in zip([*weights, "inputs"], gradients, strict=False) if value is not None}


@pytest.fixture(params=["few tokens", "many tokens"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose products: a library's, or ours, which many tokens have."""
    monkeypatch.setattr(lora_products, "LEAST_TOKENS", sys.maxsize if request.param == "few tokens" else 1)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("frozen_inputs", [False, True], ids=["connector learns", "adapter alone"])
@pytest.mark.parametrize("norms", [False, True], ids=["norms frozen", "norms learn"])
def test_states_and_gradients_are_those_of_peft(bases: dict[str, Path], frozen_inputs: bool, norms: bool) -> None:
    assistant = with_adapter(bases)
    assistant.model.model.language_model.norm.weight.requires_grad_(norms)
    states, gradients = outcome(assistant, frozen_inputs)
    assert fused.install(assistant.model.model.language_model) == 14  # seven linear layers in each of two blocks
    fast_states, fast_gradients = outcome(assistant, frozen_inputs)
    torch.testing.assert_close(fast_states, states, rtol=CLOSE, atol=CLOSE)
    assert fast_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (fast_gradients[name] - gradient).abs().max() <= CLOSE * gradient.abs().max(), name


def test_rotary_positions_are_those_of_transformers_to_the_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, 5, 3, 8, generator=draw, requires_grad=True) for _ in range(2))
    angles = torch.randn(1, 5, 4, generator=draw).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    states = x.transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(states, states, cos, sin)
    found = rotated(x, cos, sin).transpose(1, 2)
    assert torch.equal(found, expected)
    (one,), (two,) = (torch.autograd.grad((y * weight.transpose(1, 2)).sum(), [x]) for y in (found, expected))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)  # autograd adds the two halves in another order


def test_outputs_for_many_tokens_are_the_same_bits_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whatever else is in the batch: else a document's loss would tell of its neighbours."""
    monkeypatch.setattr(lora_products, "LEAST_TOKENS", 1)
    draw = torch.Generator().manual_seed(0)
    layer, x = torch.nn.Linear(48, 64).requires_grad_(False), torch.randn(201, 48, generator=draw)
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outcomes.append(lora_products.several(x, [layer])[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outcomes[0], other) for other in outcomes[1:])
    assert torch.equal(lora_products.several(x[50:150], [layer])[0], outcomes[0][50:150])
    torch.testing.assert_close(outcomes[0], layer(x), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("sizes", [(48, 40), (40, 48)], ids=["outputs", "inputs"])
def test_layers_whose_width_is_not_of_whole_lines_have_a_librarys_products(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panels have 16 columns, forward and back."""
    monkeypatch.setattr(lora_products, "LEAST_TOKENS", 1)
    layer = torch.nn.Linear(*sizes).requires_grad_(False)
    x = torch.randn(30, sizes[0], generator=torch.Generator().manual_seed(0), requires_grad=True)
    (one,), two = lora_products.several(x, [layer]), layer(x)
    torch.testing.assert_close(one, two, rtol=CLOSE, atol=CLOSE)
    (one,), (two,) = (torch.autograd.grad(each.pow(2).sum(), [x]) for each in (one, two))
    torch.testing.assert_close(one, two, rtol=CLOSE, atol=CLOSE)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("given", ["padded", "packed", "masked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_with_the_layers_of_ours_say_the_same(family: str, given: str) -> None:
    """Fewer heads of keys than of queries, biases in Qwen2, an adapter on some layers alone, branches in a packed row."""
    model = language(family).requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj", "o_proj"], init_lora_weights=False), model
    )
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    inputs = torch.randn(2, 30, model.config.hidden_size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    more: dict[str, Any] = {}
    if given == "masked":
        more["attention_mask"] = (torch.arange(30) < torch.tensor([[30], [20]])).long()
    if given == "packed":
        packed.install(model, context_tokens=64)
        inputs = inputs[:1].detach().requires_grad_()
        more = {"layout": packed.Layout(DOCUMENTS, tuple(map(packed.branch_mask, DOCUMENTS)))}

    def both() -> tuple[torch.Tensor, ...]:
        states = model(inputs_embeds=inputs, use_cache=False, **more).last_hidden_state
        return states, *torch.autograd.grad(states.pow(3).sum(), [inputs, *learned])

    plain = both()
    assert fused.install(model) == 8  # four layers with an adapter in each of two blocks
    for fast, usual in zip(both(), plain, strict=True):
        assert (fast - usual).abs().max() <= CLOSE * usual.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_is_filled_and_read_as_transformers_does_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel computes the prefix; what follows looks at the keys that were written."""
    model = language(family).requires_grad_(False).eval()
    inputs = torch.randn(2, 13, model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def both() -> list[torch.Tensor]:
        cache = DynamicCache()
        prefix = model(inputs_embeds=inputs[:, :12], past_key_values=cache, use_cache=True).last_hidden_state
        rest = model(inputs_embeds=inputs[:, 12:], past_key_values=cache, use_cache=True).last_hidden_state
        return [prefix, rest, *(part for layer in cache.layers for part in (layer.keys, layer.values))]

    plain = both()
    fused.install(model)
    calls = []
    monkeypatch.setattr(fused, "attended", lambda *given: calls.append(1) or attended(*given))
    for fast, usual in zip(both(), plain, strict=True):
        assert fast.shape == usual.shape
        assert (fast - usual).abs().max() <= CLOSE * usual.abs().max()
    assert len(calls) == len(model.layers)


def test_a_packed_model_refuses_a_batch_without_a_layout() -> None:
    """Else documents of a row would see each other."""
    model = language("llama").requires_grad_(False)
    packed.install(model, context_tokens=64)
    fused.install(model)
    with pytest.raises(ConfigError, match="without a layout"):
        model(inputs_embeds=torch.zeros(1, 9, model.config.hidden_size), use_cache=False)


def test_attention_with_dropout_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language("llama").requires_grad_(False).train()
    model.layers[0].self_attn.attention_dropout = 0.5
    fused.install(model)
    calls = []
    monkeypatch.setattr(fused, "attended", lambda *given: calls.append(1) or attended(*given))
    model(inputs_embeds=torch.zeros(1, 9, model.config.hidden_size), use_cache=False)
    assert len(calls) == len(model.layers) - 1


@pytest.mark.parametrize("case", ["dropout", "bfloat16"])
def test_layers_that_would_not_be_the_same_are_left_alone(bases: dict[str, Path], case: str) -> None:
    dropout, dtype = (0.5, torch.float32) if case == "dropout" else (0.0, torch.bfloat16)
    assert fused.install(with_adapter(bases, dropout, dtype).model.model.language_model) == 0


def test_a_merge_after_training_is_the_usual_one(bases: dict[str, Path], tmp_path: Path) -> None:
    plain, fast = (adapters.merge(each, None) for each in (with_adapter(bases), _installed(with_adapter(bases))))
    for (name, one), two in zip(plain.model.named_parameters(), fast.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not any(isinstance(layer, LoraLinear) for layer in fast.model.modules())


def _installed(assistant: Assistant) -> Assistant:
    fused.install(assistant.model.model.language_model)
    return assistant

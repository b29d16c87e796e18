"""The last block computes at the wanted positions what it computes there anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.architecture import last_block, packed
from model.batch import Batch, Document

CLOSE = 1e-5
"""Relative to the largest value: float32 sums in another order."""
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
}
DOCUMENTS = (Document(0, 7, (3, 5)), Document(15, 6), Document(21, 4, (2, 2, 1)))
LENGTH = 30


def language(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = FAMILIES[family]().model.train()
    return model


def batch_of(shape: tuple[int, int], sources: Sequence[int], documents: tuple[Document, ...] = ()) -> Batch:
    ids = torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(1))
    starts = [torch.arange(d.trunk + sum(d.branches)) for d in documents]  # any positions do, if both ways get the same
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        sources=torch.tensor(sources),
        targets=torch.zeros(len(sources), dtype=torch.int64),
        pixel_values=torch.zeros(0),
        documents=documents,
        positions=torch.cat(starts)[None] if documents else None,
    )


def outcome(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """States at the sources, and the gradients of all weights and of the inputs."""
    layout = packed.layout_of(batch)
    given = {} if layout is None else {"layout": layout, "position_ids": batch.positions}
    wanted = last_block.wanted_of(model, batch, layout)
    inputs = model.embed_tokens(batch.input_ids).detach().requires_grad_()
    states = model(inputs_embeds=inputs, use_cache=False, wanted=wanted, **given).last_hidden_state.flatten(0, 1)
    if wanted is None:
        states = states[batch.sources]
    asked = [weight for name, weight in model.named_parameters() if "embed_tokens" not in name]
    return states, list(torch.autograd.grad(states.pow(3).sum(), [inputs, *asked]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "batch",
    [
        batch_of((3, 11), [2, 7, 11, 12, 32]),
        batch_of((3, 11), [12, 13]),  # two rows without a target
        batch_of((1, LENGTH), [6, 7, 6, 13, 18, 20, 24, 25, 28, 24, 29], DOCUMENTS),  # branches begin where their trunk ends
    ],
    ids=["padded", "rows without targets", "packed"],
)
def test_states_and_every_gradient_are_those_of_the_whole_block(family: str, batch: Batch) -> None:
    model = language(family)
    if batch.documents:
        packed.install(model, 128)
    expected, gradients = outcome(model, batch)
    assert last_block.install(model)
    assert last_block.wanted_of(model, batch, packed.layout_of(batch)) is not None
    found, own_gradients = outcome(model, batch)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    for one, two in zip(gradients, own_gradients, strict=True):
        assert (one - two).abs().max() <= CLOSE * one.abs().max()


def test_every_wanted_state_sees_its_own_branch_and_trunk_alone() -> None:
    model = language("llama")
    packed.install(model, 128)
    last_block.install(model)
    document, branch = packed.allowed(DOCUMENTS, LENGTH)
    whole = batch_of((1, LENGTH), [0], DOCUMENTS)
    for place in range(LENGTH):
        batch = replace(whole, sources=torch.tensor([place]))
        layout = packed.layout_of(batch)
        inputs = model.embed_tokens(batch.input_ids).detach().requires_grad_()
        wanted = last_block.wanted_of(model, batch, layout)
        given = {"layout": layout, "position_ids": batch.positions, "wanted": wanted}
        states = model(inputs_embeds=inputs, use_cache=False, **given).last_hidden_state
        (gradient,) = torch.autograd.grad(states.square().sum(), inputs)
        felt = gradient[0].abs().amax(dim=-1) > 0
        before = torch.arange(LENGTH) <= place
        assert torch.equal(felt, before & (document == document[place]) & ((branch == 0) | (branch == branch[place])))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_keys_of_a_prefix_are_those_of_the_whole_block(family: str) -> None:
    model = language(family)
    ids = batch_of((2, 9), [0]).input_ids
    whole, alone = DynamicCache(), DynamicCache()
    model(input_ids=ids, past_key_values=whole, use_cache=True)
    last_block.install(model)
    untouched = model.layers[-1].mlp.register_forward_hook(lambda *_: pytest.fail("the last MLP ran"))
    model(input_ids=ids, past_key_values=alone, use_cache=True, keys_alone=True)
    untouched.remove()
    for one, two in zip(whole.layers, alone.layers, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)


def test_it_is_left_out_where_most_positions_count_and_where_none_does() -> None:
    model = language("llama")
    batch = batch_of((2, 8), range(9))
    assert last_block.wanted_of(model, replace(batch, sources=torch.tensor([3])), None) is None  # not installed
    last_block.install(model)
    assert last_block.wanted_of(model, batch, None) is None
    assert last_block.wanted_of(model, replace(batch, sources=batch.sources[:0]), None) is None
    assert last_block.wanted_of(model, replace(batch, sources=batch.sources[:8]), None) is not None


def test_a_model_that_makes_a_mask_of_its_own_keeps_it() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).model
    batch = batch_of((2, 9), [3, 8, 17])
    expected, _ = outcome(model, batch)
    last_block.install(model)
    found, _ = outcome(model, batch)
    assert torch.equal(found, expected)


def test_blocks_that_are_not_known_are_left_alone() -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)).model
    assert not last_block.install(model)

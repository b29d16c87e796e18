"""A packed row computes what its examples compute alone: loss and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import MistralConfig, MistralForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.architecture import head, packed
from model.architecture.assembly import Assistant, build
from model.architecture.joint import check_joint, embed, encode, read
from model.batch import IGNORE, Batch, Document
from model.data.collate import collate
from model.data.collate import packed as pack
from model.data.examples import Example, trunk_of
from model.errors import ConfigError, DataError
from tests.model.tiny_bases import IMAGE_SIZE, IMAGE_TOKENS, model_settings

CLOSE = 1e-5
"""Relative to the largest value of the same tensor: float32 sums in another order move by about 1e-6."""


def example(name: str, images: Sequence[int], image_token: int, turns: int = 1, seed: int = 0) -> Example:
    """A conversation of random bytes with `turns` answers of a few tokens; an image is named by its number."""
    generator = np.random.default_rng(seed)
    ids, labels = [1], [IGNORE]
    for _ in images:
        ids += [image_token] * IMAGE_TOKENS
        labels += [IGNORE] * IMAGE_TOKENS
    for _ in range(turns):
        question, answer = (generator.integers(40, 200, size).tolist() for size in generator.integers(1, 9, 2))
        ids += question + answer
        labels += [IGNORE] * len(question) + answer
    paths = tuple(Path(str(image)) for image in images)
    array = np.array(ids, np.int32)
    return Example(name, array, np.array(labels, np.int32), paths, trunk_of(array, image_token))


def cases(image_token: int) -> dict[str, list[list[Example]]]:
    """Documents by what they show."""

    def about(images: Sequence[int], count: int, turns: int = 1) -> list[Example]:
        return [example(f"{images}-{n}", images, image_token, turns, seed=n + 10 * len(images)) for n in range(count)]

    caption = example("caption", [0], image_token, seed=5)
    # The answer begins right behind the image, so the trunk's end predicts it.
    labels = np.where(np.arange(caption.num_tokens) < caption.trunk, IGNORE, caption.input_ids)
    bare = Example("bare", caption.input_ids, labels, caption.images, caption.trunk)
    return {
        "one turn": [about([0], 4), about([1], 2)],
        "several turns": [about([0], 3, turns=3), about([1], 1, turns=2)],
        "several images": [about([0, 1], 3), about([2], 2), about([1, 0], 2)],
        "no image": [about([], 1), about([0], 2), about([], 1)],
        "a bare caption": [[*about([0], 2), bare], about([1], 1)],
    }


@pytest.fixture(scope="module")
def assistants(bases: dict[str, Path]) -> tuple[Assistant, Assistant]:
    """Two of the same weights, all of which learn: one for examples alone, one for packed rows."""
    pair = tuple(build(model_settings(), bases, seed=0) for _ in range(2))
    for each in pair:
        each.model.requires_grad_(True)
        each.model.model.vision_tower.requires_grad_(False)
    packed.install(pair[1].model.model.language_model, 256)
    return pair


def features_of(assistant: Assistant, images: Sequence[Path]) -> torch.Tensor:
    """Tower features of random images, the same for the same name."""
    pixels = [torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(int(str(path)))) for path in images]
    return encode(assistant.model, torch.stack(pixels) if pixels else torch.zeros(0, 3, IMAGE_SIZE, IMAGE_SIZE))


def loss_of(assistant: Assistant, batch: Batch) -> torch.Tensor:
    check_joint(batch, assistant.image_token_id, IMAGE_TOKENS)
    states = read(assistant.model, batch, embed(assistant.model, batch, batch.pixel_values))
    return head.loss_sum(assistant.model.lm_head, states, batch.targets)


def assert_same_gradients(first: nn.Module, second: nn.Module) -> None:
    seen = 0
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        if one.grad is None and two.grad is None:
            continue
        assert one.grad is not None, name
        assert two.grad is not None, name
        largest = one.grad.abs().max()
        assert (one.grad - two.grad).abs().max() <= CLOSE * largest + 1e-12, name
        seen += bool(largest > 0)
    assert seen > 10


@pytest.mark.parametrize("shared", [False, True], ids=["rows", "shared image"])
@pytest.mark.parametrize("case", ["one turn", "several turns", "several images", "no image", "a bare caption"])
def test_loss_and_gradients_are_those_of_the_examples_alone(
    assistants: tuple[Assistant, Assistant], case: str, shared: bool
) -> None:
    alone, together = assistants
    documents = cases(alone.image_token_id)[case]
    single = [part for document in documents for part in document]
    expected = torch.stack([loss_of(alone, collate([part], lambda paths: features_of(alone, paths))) for part in single]).sum()
    batch = pack(documents if shared else [[part] for part in single], lambda paths: features_of(together, paths))
    found = loss_of(together, batch)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=0)
    for assistant, loss in ((alone, expected), (together, found)):
        assistant.model.zero_grad()
        loss.backward()
    assert_same_gradients(alone.model, together.model)
    if shared and case == "one turn":
        assert batch.num_tokens < sum(part.num_tokens for part in single) - 3 * IMAGE_TOKENS


def test_the_reference_is_what_transformers_itself_computes(assistants: tuple[Assistant, Assistant]) -> None:
    alone, _ = assistants
    (part, *_), *_ = cases(alone.image_token_id)["several turns"]
    pixels = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    ids, labels = (torch.from_numpy(values.astype(np.int64))[None] for values in (part.input_ids, part.labels))
    theirs = alone.model(input_ids=ids, pixel_values=pixels[None], labels=labels, use_cache=False).loss
    ours = loss_of(alone, collate([part], lambda paths: features_of(alone, paths)))
    torch.testing.assert_close(ours / part.num_targets, theirs, rtol=CLOSE, atol=0)


def test_no_branch_and_no_document_feels_another(assistants: tuple[Assistant, Assistant]) -> None:
    _, together = assistants
    batch = pack(cases(together.image_token_id)["several images"], lambda paths: features_of(together, paths))
    batch = replace(batch, sources=torch.arange(batch.num_tokens))
    inputs = embed(together.model, batch, batch.pixel_values).detach().requires_grad_()
    states = read(together.model, batch, inputs)
    document, branch = packed.allowed(batch.documents, inputs.shape[1])
    for place in range(inputs.shape[1]):
        (gradient,) = torch.autograd.grad(states[place].square().sum(), inputs, retain_graph=True)
        felt = gradient[0].abs().amax(dim=-1) > 0
        before = torch.arange(len(felt)) <= place
        expected = before & (document == document[place]) & ((branch == 0) | (branch == branch[place]))
        assert torch.equal(felt, expected)


def test_flex_attention_is_given_the_same_mask() -> None:
    """What runs on a GPU, here by torch's reference implementation of FlexAttention; its compiled kernel is not."""
    documents = (Document(0, 7, (3, 5)), Document(15, 6), Document(21, 4, (2, 2, 1)))
    length = 30
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 8, generator=generator) for heads in (4, 2, 2))
    layout = packed.Layout(documents, tuple(packed.branch_mask(each) for each in documents))
    ours, _ = packed.attend(nn.Module(), query, key, value, None, scaling=8**-0.5, layout=layout)
    blocks = packed.block_mask(documents, length, "cpu")
    theirs = flex_attention(query, key, value, block_mask=blocks, scale=8**-0.5, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), theirs)
    document, branch = packed.allowed(documents, length + 2)
    assert document.tolist()[-2:] == [3, 3]  # padding
    assert branch.tolist()[15:21] == [0] * 6


def test_padding_behind_the_documents_changes_nothing(assistants: tuple[Assistant, Assistant]) -> None:
    _, together = assistants
    documents = cases(together.image_token_id)["one turn"]
    plain, padded = (pack(documents, lambda paths: features_of(together, paths), length) for length in (0, 200))
    assert (padded.input_ids.shape[1], padded.num_tokens) == (200, plain.num_tokens)
    torch.testing.assert_close(loss_of(together, padded), loss_of(together, plain), rtol=CLOSE, atol=0)


def qwen() -> Qwen2_5_VLForConditionalGeneration:
    """A whole Qwen2.5-VL of a few thousand weights: its own tower, positions with three axes."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=290,
        video_token_id=291,
        vision_start_token_id=292,
        vision_end_token_id=293,
    )
    return Qwen2_5_VLForConditionalGeneration(config).float().train()


def lay_positions(documents: Sequence[Document], alone: Sequence[torch.Tensor]) -> torch.Tensor:
    """Positions of a packed sequence for models with several axes (Qwen-VL: time, height, width).

    Args:
        documents: As in `Batch`, covering T tokens.
        alone: For each branch, or each document without branches, in order: (A, L) positions of its example as if it stood alone.

    Returns:
        (A, 1, T): every token has the position that it has alone.
    """
    waiting = iter(alone)
    pieces: list[torch.Tensor] = []
    for document in documents:
        if not document.branches:
            pieces.append(next(waiting))
        for number, _ in enumerate(document.branches):
            own = next(waiting)
            pieces.append(own if number == 0 else own[:, document.trunk :])
    return torch.cat(pieces, dim=1)[:, None]


def test_qwen_with_positions_on_three_axes_follows_the_same_rule() -> None:
    alone = qwen()
    together = copy.deepcopy(alone)
    packed.install(together.model.language_model, 256)
    grid = torch.tensor([[1, 4, 4]])  # 16 patches, merged two by two: 4 image tokens
    pixels = [torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    documents = [
        [example("a", [0], 290, seed=1), example("b", [0], 290, turns=2, seed=2)],
        [example("c", [1], 290, seed=3)],
        [example("d", [], 290, seed=4)],
    ]
    losses, positions = [], []
    for document in documents:
        for part in document:
            ids = torch.from_numpy(part.input_ids.astype(np.int64))[None]
            labels = torch.from_numpy(part.labels.astype(np.int64))[None]
            kinds = (ids == 290).int()
            shown = {"pixel_values": pixels[int(str(part.images[0]))], "image_grid_thw": grid} if part.images else {}
            output = alone(input_ids=ids, labels=labels, mm_token_type_ids=kinds, use_cache=False, **shown)
            losses.append(output.loss * part.num_targets)
            places, _ = alone.model.get_rope_index(ids, kinds, image_grid_thw=grid if part.images else None)
            positions.append(places[:, 0])
    expected = torch.stack(losses).sum()

    batch = pack(documents, lambda paths: torch.zeros(len(paths)))
    inputs = together.get_input_embeddings()(batch.input_ids)
    seen = [together.model.get_image_features(pixels[n], grid).pooler_output[0] for n in range(2)]
    inputs = inputs.masked_scatter((batch.input_ids == 290)[..., None], torch.cat(seen))
    states = together.model.language_model(
        inputs_embeds=inputs,
        position_ids=lay_positions(batch.documents, positions),
        use_cache=False,
        layout=packed.layout_of(batch),
    ).last_hidden_state[0]
    found = head.loss_sum(together.lm_head, states[batch.sources], batch.targets)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=0)
    expected.backward()
    found.backward()
    assert_same_gradients(alone, together)


def test_a_model_that_looks_back_less_far_than_an_example_is_long_is_not_packed() -> None:
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=1, sliding_window=128)).model
    packed.install(language, 128)
    with pytest.raises(ConfigError, match="looks back 128 tokens, model.context_tokens is 129"):
        packed.install(language, 129)


def test_packing_is_refused_on_a_device_without_a_kernel_for_it(assistants: tuple[Assistant, Assistant]) -> None:
    _, together = assistants
    batch = pack(cases(together.image_token_id)["one turn"], lambda paths: features_of(together, paths))
    with pytest.raises(ConfigError, match="packing knows cpu and cuda, the device is meta"):
        packed.layout_of(batch.to("meta"))
    with pytest.raises(ConfigError, match="without a layout"):
        together.model.model.language_model(input_ids=batch.input_ids)


def test_placeholders_of_a_packed_row_are_counted_document_by_document(assistants: tuple[Assistant, Assistant]) -> None:
    _, together = assistants
    first, second = example("a", [0], together.image_token_id), example("b", [1], together.image_token_id)
    ids = second.input_ids.copy()
    ids[-1] = together.image_token_id
    short = Example("a", first.input_ids[1:], first.labels[1:], first.images, first.trunk - 1)
    swapped = Example("a", np.delete(short.input_ids, 0), np.delete(short.labels, 0), short.images, 0)
    batch = pack([[swapped], [Example("b", ids, second.labels, second.images, second.trunk)]], lambda p: features_of(together, p))
    with pytest.raises(DataError, match="record 'a' has 3 image placeholders, its 1 images need 4"):
        check_joint(batch, together.image_token_id, IMAGE_TOKENS)

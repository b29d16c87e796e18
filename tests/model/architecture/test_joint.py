from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from model.architecture.assembly import Assistant, build
from model.architecture.joint import check_joint, embed, encode, read
from model.batch import IGNORE, Batch
from model.errors import DataError
from tests.model.tiny_bases import IMAGE_SIZE, IMAGE_TOKENS, model_settings


@pytest.fixture(scope="module")
def assistant(bases: dict[str, Path]) -> Assistant:
    return build(model_settings(), bases, seed=0)


def batch_of(assistant: Assistant, placeholders: tuple[int, ...], images: tuple[int, ...]) -> Batch:
    """Sequences of the given numbers of placeholders and some text; the last two tokens are targets."""
    rows = [[assistant.image_token_id] * count + list(range(10, 17)) for count in placeholders]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    ends = [index * longest + len(row) for index, row in enumerate(rows)]
    places = torch.tensor([place for end in ends for place in (end - 2, end - 1)])
    torch.manual_seed(0)
    pixels = torch.randn(sum(images), 3, IMAGE_SIZE, IMAGE_SIZE)
    names = tuple(f"record-{n}" for n in range(len(rows)))
    return Batch(ids, mask, places - 1, ids.flatten()[places], pixels, names, images)


def labels_of(batch: Batch) -> torch.Tensor:
    """As transformers wants them."""
    labels = torch.full_like(batch.input_ids, IGNORE)
    labels.view(-1)[batch.sources + 1] = batch.targets
    return labels


def logits_of(assistant: Assistant, batch: Batch, everywhere: bool = False) -> torch.Tensor:
    features = encode(assistant.model, batch.pixel_values)
    states = read(assistant.model, batch, embed(assistant.model, batch, features, everywhere))
    return assistant.model.lm_head(states)


def test_a_mismatch_that_cancels_in_the_batch_is_refused(assistant: Assistant) -> None:
    half = IMAGE_TOKENS // 2
    for placeholders, images in (((half, half), (1, 0)), ((2 * IMAGE_TOKENS, 0), (1, 1))):
        batch = batch_of(assistant, placeholders, images)
        # What this guards against: transformers itself sees equal totals and learns from the wrong image.
        assistant.model(input_ids=batch.input_ids, pixel_values=batch.pixel_values)
        with pytest.raises(DataError, match=rf"'record-0' has {placeholders[0]} image placeholders, its 1 images need 4"):
            check_joint(batch, assistant.image_token_id, IMAGE_TOKENS)


def test_images_that_no_record_names_are_refused(assistant: Assistant) -> None:
    batch = batch_of(assistant, (IMAGE_TOKENS,), (1,))
    check_joint(batch, assistant.image_token_id, IMAGE_TOKENS)
    doubled = dataclasses.replace(batch, pixel_values=torch.cat([batch.pixel_values] * 2))
    with pytest.raises(DataError, match="holds 2 images, its records name 1"):
        check_joint(doubled, assistant.image_token_id, IMAGE_TOKENS)


@pytest.mark.parametrize("images", [(1, 0, 2), (0, 0, 0)], ids=["images", "text alone"])
def test_the_loss_is_that_of_transformers_with_its_mask(assistant: Assistant, images: tuple[int, ...]) -> None:
    batch = batch_of(assistant, tuple(count * IMAGE_TOKENS for count in images), images)
    logits, targets = logits_of(assistant, batch), batch.targets
    pixels = batch.pixel_values if sum(images) else None
    theirs = assistant.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels, labels=labels_of(batch)
    )
    assert len(targets) == batch.num_targets == 6
    # Measured 1e-7; a placeholder or a padded position in the loss would move it by more than 1e-3.
    torch.testing.assert_close(functional.cross_entropy(logits, targets), theirs.loss, atol=1e-6, rtol=1e-6)


def test_text_alone_can_run_through_the_connector_without_changing_anything(assistant: Assistant) -> None:
    batch = batch_of(assistant, (0, 0), (0, 0))
    plain, everywhere = (logits_of(assistant, batch, flag) for flag in (False, True))
    assert torch.equal(plain, everywhere)
    weight = assistant.connector.linear_1.weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(everywhere.sum(), weight)
    assert torch.equal(gradient, torch.zeros_like(weight))


def test_no_graph_is_built_through_the_tower(assistant: Assistant) -> None:
    assistant.model.requires_grad_(True)  # even then
    batch = batch_of(assistant, (IMAGE_TOKENS,), (1,))
    features = encode(assistant.model, batch.pixel_values)
    assert features.grad_fn is None
    assert not features.requires_grad
    logits_of(assistant, batch).sum().backward()
    assert all(weight.grad is None for weight in assistant.model.model.vision_tower.parameters())
    assert assistant.connector.linear_1.weight.grad is not None
    assistant.model.zero_grad()


@pytest.mark.parametrize("layer", [-3, -2, -1, 1, 2])
def test_the_layers_behind_the_selected_one_are_not_run_and_no_bit_changes(bases: dict[str, Path], layer: int) -> None:
    assistant = build(model_settings(feature_layer=layer), bases, seed=0)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    tower = assistant.model.model.vision_tower
    with torch.no_grad():
        theirs = tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
    ran: list[int] = []
    for number, module in enumerate(tower.encoder.layers):
        module.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert torch.equal(encode(assistant.model, pixels), theirs)
    assert ran == list(range(layer % 3))


def test_features_are_those_of_the_layer_that_the_recipe_names(bases: dict[str, Path]) -> None:
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    for layer in (-1, -2, -3, 1):
        assistant = build(model_settings(feature_layer=layer), bases, seed=0)
        theirs = assistant.model.get_image_features(pixel_values=pixels).pooler_output
        ours = assistant.connector(encode(assistant.model, pixels))
        torch.testing.assert_close(ours, torch.stack(list(theirs)))

"""Mixtures to tokenised examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from model.batch import IGNORE
from model.config import Kind, Mixture, Template, TooLong
from model.data.dataset import open_dataset
from model.data.examples import examples
from model.data.templates import Prompter, Rendered
from model.errors import DataError, MissingInputError
from tests.model.data.conftest import Writer
from tests.model.data.tiny_data import question


@pytest.fixture
def prompter(tokenizer: PreTrainedTokenizerFast) -> Prompter:
    return Prompter(tokenizer, Template.VICUNA_V1, "", 4)


def test_examples_are_those_of_the_prompter_with_paths_and_weights(write_set: Writer, prompter: Prompter) -> None:
    dataset = open_dataset(write_set({"train": [question("a"), question("b", None)]}))
    found = examples([Mixture(set="s", weight=0.5)], {"s": dataset}, prompter, 100)
    assert [(e.record_id, len(e.images), e.trunk > 0) for e in found] == [("a", 1, True), ("b", 0, False)]
    rendered = prompter.render(dataset.records("train")[0].turns, 1)
    assert found[0].input_ids.tolist() == rendered.input_ids
    assert found[0].labels.tolist() == rendered.labels
    assert found[0].images == (dataset.folder / "images/a.png",)
    assert found.metadata.tokens.tolist() == [len(rendered.input_ids), len(found[1].input_ids)]
    assert found.num_targets.tolist() == [example.num_targets for example in found]
    assert found.weights.tolist() == [0.5, 0.5]


def test_examples_with_the_same_images_and_beginning_are_one_group(write_set: Writer, prompter: Prompter) -> None:
    dataset = open_dataset(write_set({"train": [question("a"), question("b"), question("c", None), question("d", None)]}))
    group = examples([Mixture(set="s")], {"s": dataset}, prompter, 100).metadata.group.tolist()
    assert group[0] == group[1]
    assert len(set(group)) == 3


def dialogue(name: str, *answers: str) -> dict[str, Any]:
    turns = [(role, text) for answer in answers for role, text in (("user", "What is shown?"), ("assistant", answer))]
    return question(name, kind="dialogue", answer_type=None, turns=[{"role": role, "text": text} for role, text in turns])


def test_a_dialogue_that_is_too_long_is_split_between_turns_with_its_image(write_set: Writer, prompter: Prompter) -> None:
    dataset = open_dataset(write_set({"train": [dialogue("a", "A liver.", "Yes.", "Is it large? " * 40, "A liver.")]}))
    found = examples([Mixture(set="s")], {"s": dataset}, prompter, 60, TooLong.SPLIT)
    assert [example.record_id for example in found] == ["a", "a"]  # the third answer alone is too long, and never cut
    assert found.set_aside == {"s/train": 1}
    for example in found:
        assert (example.input_ids == prompter.image_token_id).sum() == 4
        assert example.num_tokens <= 60
        assert example.labels[-1] == prompter.end_token_id
    turns = dataset.records("train")[0].turns
    assert found[0].input_ids.tolist() == prompter.render(turns[:4], 1).input_ids
    assert found[1].input_ids.tolist() == prompter.render(turns[6:], 1).input_ids


def test_a_record_that_is_too_long_can_end_the_run(write_set: Writer, prompter: Prompter) -> None:
    dataset = open_dataset(write_set({"train": [question("a"), dialogue("b", "Is it large? " * 40)]}))
    with pytest.raises(
        DataError, match="s/train: 1 of 2 records are longer than the context of 60 tokens; the longest, 'b', has"
    ):
        examples([Mixture(set="s")], {"s": dataset}, prompter, 60, TooLong.REFUSE)


@pytest.mark.parametrize("wrong", ["no target", "4 image placeholders among its targets"])
def test_a_record_whose_loss_is_not_on_text_is_refused(
    write_set: Writer, prompter: Prompter, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    dataset = open_dataset(write_set({"train": [question("a")]}))
    render = prompter.render

    def mislabelled(*args: Any) -> Rendered:
        ids = render(*args).input_ids
        return Rendered(ids, [IGNORE] * len(ids) if wrong == "no target" else ids)

    monkeypatch.setattr(Prompter, "render", lambda self, *args: mislabelled(*args))
    with pytest.raises(DataError, match=f"record 'a' has {wrong}"):
        examples([Mixture(set="s")], {"s": dataset}, prompter, 100)


def test_a_record_longer_than_the_context_is_set_aside_and_counted_never_cut(write_set: Writer, prompter: Prompter) -> None:
    long = question("long", turns=[{"role": "user", "text": "Is it? " * 50}, {"role": "assistant", "text": "Yes"}])
    dataset = open_dataset(write_set({"train": [question("a"), long]}))
    found = examples([Mixture(set="s")], {"s": dataset}, prompter, 40)
    assert [e.record_id for e in found] == ["a"]
    assert found.set_aside == {"s/train": 1}
    length = found[0].num_tokens
    assert len(examples([Mixture(set="s")], {"s": dataset}, prompter, length)) == 1
    with pytest.raises(
        DataError, match=rf"s/train: all 2 records are longer than the context of {length - 1} tokens; .* has {length}"
    ):
        examples([Mixture(set="s")], {"s": dataset}, prompter, length - 1)


def test_mixtures_select_set_split_and_kinds(write_set: Writer, prompter: Prompter) -> None:
    one = open_dataset(write_set({"train": [question("a"), question("b", kind="caption")], "dev": [question("c")]}, name="one"))
    two = open_dataset(write_set({"train": [question("d")]}, name="two"))
    mixtures = [Mixture(set="two"), Mixture(set="one", kinds=(Kind.CAPTION,), weight=2), Mixture(set="one", split="dev")]
    found = examples(mixtures, {"one": one, "two": two}, prompter, 100)
    assert list(zip(found.names, found.weights, strict=True)) == [("d", 1), ("b", 2), ("c", 1)]
    with pytest.raises(DataError, match=r"one/dev has no record of the kinds asked for \(grounding\)"):
        examples([Mixture(set="one", split="dev", kinds=(Kind.GROUNDING,))], {"one": one}, prompter, 100)
    with pytest.raises(MissingInputError, match="no data set 'three'"):
        examples([Mixture(set="three")], {"one": one}, prompter, 100)


def test_placeholders_are_counted_in_every_record(write_set: Writer, prompter: Prompter, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(write_set({"train": [question("a")]}))
    render = prompter.render

    def one_too_many(*args, **kwargs):
        rendered = render(*args, **kwargs)
        rendered.input_ids[-1] = prompter.image_token_id
        return rendered

    monkeypatch.setattr(Prompter, "render", lambda self, *args, **kwargs: one_too_many(*args, **kwargs))
    with pytest.raises(DataError, match="record 'a' has 1 images, 4 placeholders expected, 5 found"):
        examples([Mixture(set="s")], {"s": dataset}, prompter, 100)


def test_labels_are_int32_and_as_long_as_the_ids(write_set: Writer, prompter: Prompter) -> None:
    (example,) = examples([Mixture(set="s")], {"s": open_dataset(write_set({"train": [question("a")]}))}, prompter, 100)
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    assert example.input_ids.shape == example.labels.shape

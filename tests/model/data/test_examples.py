"""Mixtures to tokenised examples."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from model.config import Kind, Mixture, Template
from model.data.dataset import open_dataset
from model.data.examples import examples
from model.data.templates import Prompter
from model.errors import DataError, MissingInputError
from tests.model.data.conftest import Writer
from tests.model.data.tiny_data import question


@pytest.fixture
def prompter(tokenizer: PreTrainedTokenizerFast) -> Prompter:
    return Prompter(tokenizer, Template.VICUNA_V1, "", 4)


def test_examples_are_those_of_the_prompter_with_paths_and_weights(write_set: Writer, prompter: Prompter) -> None:
    dataset = open_dataset(write_set({"train": [question("a"), question("b", None)]}))
    found = examples([Mixture(set="s", weight=0.5)], {"s": dataset}, prompter, 100)
    assert [(e.record_id, e.weight, len(e.images)) for e in found] == [("a", 0.5, 1), ("b", 0.5, 0)]
    rendered = prompter.render(dataset.records("train")[0].turns, 1)
    assert found[0].input_ids.tolist() == rendered.input_ids
    assert found[0].labels.tolist() == rendered.labels
    assert found[0].images == (dataset.folder / "images/a.png",)
    assert found.lengths == [len(rendered.input_ids), len(found[1].input_ids)]
    assert found.weights == [0.5, 0.5]


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
    assert [(e.record_id, e.weight) for e in found] == [("d", 1), ("b", 2), ("c", 1)]
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

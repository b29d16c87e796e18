"""The tiny base models: they learn, and come out as folders that plain transformers can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

from model import manifest
from model.config import Template
from model.data.loading import Prompter
from model.data.records import Role, Turn
from model.data.sources.phantom import write_phantom
from model.data.sources.phantom_facts import Split
from model.errors import MissingInputError, UsageError
from model.training.base import main, train_base
from model.training.base_language import CONTROL, MARKS, make_tokenizer
from model.training.base_lesson import order
from model.training.base_tower import contrast, grams
from model.training.reporter import ListReporter

STEPS = 12


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(folder, {Split.TRAIN: 60, Split.TEST: 4})
    return folder


@pytest.fixture(scope="module")
def tower(phantom: Path) -> tuple[Path, ListReporter]:
    reporter = ListReporter()
    train_base("tower", phantom, phantom.parent / "tower", reporter, steps=STEPS)
    return phantom.parent / "tower", reporter


@pytest.fixture(scope="module")
def language(phantom: Path) -> tuple[Path, ListReporter]:
    reporter = ListReporter()
    train_base("language", phantom, phantom.parent / "language", reporter, steps=STEPS)
    return phantom.parent / "language", reporter


@pytest.fixture(scope="module")
def words() -> object:
    return make_tokenizer(["Is there a lesion in the upper left?", "yes", "no", "There is no lesion."])


def test_the_tower_lowers_its_loss(tower: tuple[Path, ListReporter]) -> None:
    losses = [row["loss"] for row in tower[1].rows]
    assert len(losses) == STEPS
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


def test_the_language_model_lowers_its_loss(language: tuple[Path, ListReporter]) -> None:
    losses = [row["loss"] for row in language[1].rows]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_the_tower_is_read_by_plain_transformers(tower: tuple[Path, ListReporter]) -> None:
    model, report = CLIPVisionModel.from_pretrained(str(tower[0]), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    image = Image.fromarray(np.full((40, 50), 90, np.uint8)).convert("RGB")
    pixels = AutoImageProcessor.from_pretrained(str(tower[0]), backend="pil")(images=image, return_tensors="pt")["pixel_values"]
    assert model(pixel_values=pixels).last_hidden_state.shape[:2] == (1, 17)


def test_the_language_model_is_read_by_plain_transformers(language: tuple[Path, ListReporter]) -> None:
    model, report = LlamaForCausalLM.from_pretrained(str(language[0]), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(str(language[0]))
    assert len(tokenizer) == model.config.vocab_size
    ids = tokenizer("Is there a lesion?", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_the_artifacts_verify_and_name_their_data(phantom: Path, tower: tuple[Path, ListReporter]) -> None:
    made = manifest.verify(tower[0])
    assert (made.kind, made.parents) == ("base", {"data": manifest.read(phantom).digest})
    assert made.facts["licence"] == "CC0-1.0"


@pytest.mark.parametrize("part", ["tower", "language"])
def test_the_same_seed_gives_the_same_model(part: str, phantom: Path, tmp_path: Path) -> None:
    digests = [train_base(part, phantom, tmp_path / str(n), ListReporter(), seed, 2).digest for n, seed in enumerate((3, 3, 4))]
    assert digests[0] == digests[1] != digests[2]


def test_training_leaves_the_random_state_of_the_caller_alone(phantom: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_base("tower", phantom, tmp_path / "tower", ListReporter(), steps=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("template", [t for t in Template if t is not Template.MISTRAL])
def test_the_tokenizer_serves_every_template(template: Template, words: object) -> None:
    prompter = Prompter(words, template, system="", image_tokens=4)
    turns = [Turn(role=Role.USER, text="Is there a lesion?"), Turn(role=Role.ASSISTANT, text="yes")]
    assert prompter.render(turns, 1).input_ids.count(prompter.image_token_id) == 4


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    tokenizer = _WORDS
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not set(ids) & set(tokenizer.convert_tokens_to_ids(list(CONTROL))):
        assert tokenizer.decode(ids) == text


def test_boxes_are_ordinary_text_of_one_token_each(words: object) -> None:
    text = "<box>(1,20),(300,999)</box>"
    ids = words.encode(text, add_special_tokens=False)
    assert words.decode(ids, skip_special_tokens=True) == text
    assert {words.convert_tokens_to_ids(mark) for mark in ("<box>", "</box>")} <= set(ids)
    assert not set(MARKS) & set(words.all_special_tokens)


def test_contrast_is_least_where_sentences_find_their_images() -> None:
    belongs = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    right, wrong = contrast(20 * belongs, belongs), contrast(20 * (1 - belongs), belongs)
    floor = torch.tensor(2.0).log()  # one of two images, and that sentence is offered twice
    assert right == pytest.approx(float(floor), abs=1e-3)
    assert wrong > 10 * right


def test_a_bag_of_words_keeps_which_word_followed_which() -> None:
    one, other = "In the upper left and lower right.", "In the upper right and lower left."
    assert sorted(one.split()) != grams(one)
    assert set(grams(one)) != set(grams(other))


def test_every_example_is_seen_before_any_is_seen_again() -> None:
    plan = order(10, 4, 6, seed=0)
    steps = [index for ((micro,),) in plan for index in micro]
    assert len(plan) == 6
    assert all(len(set(steps[start : start + 8])) == 8 for start in range(0, 24, 8))


def test_an_unknown_part_is_a_usage_error(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no base model"):
        train_base("nose", phantom, tmp_path / "nose", ListReporter())


def test_data_without_a_manifest_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        train_base("tower", tmp_path, tmp_path / "tower", ListReporter())


def test_the_command_prints_the_digest_and_gives_an_exit_code(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tower"
    common = ["--out", str(out), "--steps", "1", "--threads", str(torch.get_num_threads())]
    assert main(["tower", "--data", str(phantom), *common]) == 0
    assert manifest.read(out).digest in capsys.readouterr().out
    assert main(["tower", "--data", str(tmp_path), *common]) == 66


_WORDS = make_tokenizer(["Is there a lesion in the upper left?"])

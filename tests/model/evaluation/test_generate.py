from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from model.architecture.assembly import Assistant, build
from model.architecture.joint import encode
from model.config import Template
from model.data.dataset import DataSet
from model.data.pixels import PixelSource
from model.data.records import Record, Role, Turn
from model.data.templates import Prompter
from model.errors import ConfigError, DataError, DivergedError
from model.evaluation import generate
from model.evaluation.generate import Features, Prediction, answer_all, blinded, mean_image
from model.evaluation.question import Question, batches
from model.evaluation.shared_prefix import BRANCHES, SharedPrefix, rows_of
from tests.model.tiny_bases import IMAGE_TOKENS, WIDTH, model_settings

LONGEST = 6


Pixels = Callable[[Sequence[str]], torch.Tensor]


@pytest.fixture(scope="module")
def pixels(assistant: Assistant, phantom: DataSet) -> Pixels:
    source = PixelSource(assistant.image_processor)
    return lambda names: source([phantom.path(name) for name in names])


@pytest.fixture(scope="module")
def features(assistant: Assistant, pixels: Pixels) -> Features:
    return lambda names: encode(assistant.model, pixels(names))


def test_the_company_of_a_question_does_not_change_its_answer(
    assistant: Assistant, questions: list[Record], features: Features
) -> None:
    together = answer_all(assistant, questions, features, 64, LONGEST)
    assert [p.record_id for p in together] == [r.id for r in questions]
    assert len({p.text for p in together}) > 1  # else the comparison would say nothing
    assert answer_all(assistant, questions, features, 5, LONGEST) == together
    some = questions[::4]
    assert answer_all(assistant, some[::-1], features, 1, LONGEST)[::-1] == together[::4]


@torch.inference_mode()
def one_by_one(assistant: Assistant, records: Sequence[Record], pixels: Pixels, longest: int = LONGEST) -> list[list[int]]:
    """New tokens of the plain `generate` of transformers, each question and its images on their own."""
    prompter, found = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens), []
    for record in records:
        ids = torch.tensor([prompter.prompt(record.turns[:1], len(record.images))])
        whole = assistant.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels(record.images) if record.images else None,
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=prompter.end_token_id,
            pad_token_id=prompter.pad_token_id,
            use_cache=True,
        )
        found.append(whole[0, ids.shape[1] :].tolist())
    return found


def test_memory_that_nobody_wrote_changes_no_answer(assistant: Assistant, questions: list[Record], features: Features) -> None:
    """Prefixes of different lengths leave gaps in a batch's rows, which are read and count for nothing."""
    asked = with_counts(questions, (3, 3, 2))
    expected = answer_all(assistant, asked, features, 64, LONGEST)
    torch.use_deterministic_algorithms(True)  # empty memory then holds NaN
    try:
        assert torch.empty(1).isnan().all()
        assert answer_all(assistant, asked, features, 64, LONGEST) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def with_counts(questions: list[Record], counts: Sequence[int]) -> list[Record]:
    """So many different questions about the first, the second, ... image; of the last one, about both of the first two."""
    by_image: dict[tuple[str, ...], list[Record]] = {}
    for record in questions:
        by_image.setdefault(record.images, []).append(record)
    chosen = [record for group, count in zip(by_image.values(), counts[:-1], strict=False) for record in group[:count]]
    both = tuple(image for images in list(by_image)[:2] for image in images)
    return chosen + [record.model_copy(update={"images": both}) for record in questions[: counts[-1]]]


@pytest.mark.parametrize("batch_size", [64, 7, 1])
def test_answers_are_those_of_the_plain_generate_of_transformers(
    assistant: Assistant,
    questions: list[Record],
    features: Features,
    pixels: Pixels,
    batch_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = with_counts(questions, (11, 1, 4, 2))
    plain = one_by_one(assistant, some, pixels, 40)

    def lengths(end: int) -> set[int]:
        return {ids.index(end) if end in ids else -1 for ids in plain}

    # The end token that ends the answers at the most different steps: rows and branches leave one after the other.
    end = max((token for ids in plain for token in ids), key=lambda token: len(lengths(token)))
    assert len(lengths(end)) >= 3
    monkeypatch.setattr(Prompter, "end_token_id", end)
    plain = one_by_one(assistant, some, pixels, 40)
    found: list[list[int]] = []
    prediction = generate._prediction

    def kept(record_id: str, ids: list[int], prompter: Prompter) -> Prediction:
        found.append(ids)
        return dataclasses.replace(prediction(record_id, ids, prompter), text=str(ids))

    monkeypatch.setattr(generate, "_prediction", kept)
    answers = answer_all(assistant, some, features, batch_size, 40)
    assert [answer.text for answer in answers] == [str(ids) for ids in plain]


def asked(counts: Sequence[int]) -> list[Question]:
    """So many questions of 18 tokens about each image."""
    return [Question((str(image),), (1,), (2,) * 16 + (image, at)) for image, count in enumerate(counts) for at in range(count)]


def test_one_image_with_many_questions_does_not_widen_the_rows_of_all() -> None:
    few = asked([1] * 11 + [8])
    rows, places = rows_of(few)
    computed = len(rows) * max(18 * len(row) for row in rows)
    assert computed <= 2 * 18 * len(few)  # in twelve rows of eight questions it would be five times as many
    assert [rows[row][branch] for row, branch in places] == list(range(len(few)))
    assert all(len({few[index].images for index in row}) == 1 for row in rows)


def test_where_every_image_has_many_questions_rows_are_full() -> None:
    rows, _ = rows_of(asked([2 * BRANCHES] * 3))
    assert [len(row) for row in rows] == [BRANCHES] * 6


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_model_that_sees_no_further_than_a_window_answers_as_transformers_lets_it(
    bases: dict[str, Path], questions: list[Record], phantom: DataSet, kind: str
) -> None:
    language = {
        "model_type": kind, "tokenizer": "registry:language", "vocab_size": 266, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8,
        "max_position_embeddings": 512,
    }  # fmt: skip
    language |= {"use_sliding_window": True, "max_window_layers": 1} if kind == "qwen2" else {}
    other = build(model_settings(language={"config": language}), bases, seed=1)
    source = PixelSource(other.image_processor)

    def pixels(names: Sequence[str]) -> torch.Tensor:
        return source([phantom.path(name) for name in names])

    some = with_counts(questions, (3, 2, 1))
    answers = answer_all(other, some, lambda names: encode(other.model, pixels(names)), 8, LONGEST)
    plain = [generate._prediction("", ids, prompter_of(other)) for ids in one_by_one(other, some, pixels)]
    assert [answer.text for answer in answers] == [answer.text for answer in plain]


def prompter_of(assistant: Assistant) -> Prompter:
    return Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)


def test_every_prefix_is_computed_once_however_small_the_batches_are(
    assistant: Assistant, questions: list[Record], features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[object] = []
    read = SharedPrefix._read_together

    def counting(engine: SharedPrefix, keys: Sequence[object], seen: object) -> None:
        computed.extend(keys)
        read(engine, keys, seen)  # type: ignore[arg-type]

    monkeypatch.setattr(SharedPrefix, "_read_together", counting)
    answer_all(assistant, questions, features, 3, 2)
    assert len(computed) == len(set(computed)) == len({record.images for record in questions})


def test_questions_of_an_image_stay_together() -> None:
    groups = {("a",): 5, ("b",): 2, ("c",): 2, (): 1, ("d",): 9}
    asked = [
        Question(images, (7,) * len(images or "x"), (number,)) for images, count in groups.items() for number in range(count)
    ]
    found = list(batches(asked, 4))
    assert Counter(question for batch in found for question in batch) == Counter(asked)
    assert max(map(len, found)) == 4
    for images, count in groups.items():
        where = [place for place, batch in enumerate(found) if any(question.images == images for question in batch)]
        assert where == list(range(where[0], where[0] + len(where)))
        assert len(where) == -(-count // 4)


def test_text_and_several_images_go_together_with_one_image(
    assistant: Assistant, questions: list[Record], features: Features
) -> None:
    first, second = questions[0].images[0], questions[-1].images[0]
    mixed = [
        questions[0].model_copy(update={"images": images, "id": str(index)})
        for index, images in enumerate([(), (first,), (first, second), (second, first)])
    ]
    together = answer_all(assistant, mixed, features, 8, LONGEST)
    alone = [answer_all(assistant, [record], features, 1, LONGEST)[0] for record in mixed]
    assert together == alone


def test_each_image_is_asked_for_once_and_equal_questions_are_answered_once(
    assistant: Assistant, questions: list[Record], features: Features
) -> None:
    asked: list[str] = []

    def counting(names: Sequence[str]) -> torch.Tensor:
        asked.extend(names)
        return features(names)

    seen: list[tuple[int, int, str]] = []
    twice = [*questions[:14], *(r.model_copy(update={"id": f"{r.id}-again"}) for r in questions[:14])]
    found = answer_all(assistant, twice, counting, 3, 2, lambda *values: seen.append(values))
    assert sorted(asked) == sorted({r.images[0] for r in twice})
    assert [p.text for p in found[:14]] == [p.text for p in found[14:]]
    assert seen[-1] == (28, 28, "questions")
    assert seen == sorted(seen)


def test_blind_questions_share_one_image(assistant: Assistant, questions: list[Record]) -> None:
    calls: list[Sequence[str]] = []

    def grey(names: Sequence[str]) -> torch.Tensor:
        calls.append(names)
        return torch.zeros(len(names), IMAGE_TOKENS, WIDTH)

    answer_all(assistant, blinded(questions), grey, 16, 2)
    assert [list(names) for names in calls] == [["blind"]]


def test_an_answer_ends_with_the_end_token(
    assistant: Assistant, questions: list[Record], features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer_all(assistant, questions[:1], features, 1, 1)[0]
    assert (whole.complete, whole.new_tokens) == (False, 1)
    token = assistant.tokenizer.encode(whole.text, add_special_tokens=False)[-1]
    monkeypatch.setattr(Prompter, "end_token_id", token)
    ended = answer_all(assistant, questions, features, 16, LONGEST)
    assert (ended[0].text, ended[0].complete, ended[0].new_tokens) == ("", True, 1)
    assert all(p.new_tokens == LONGEST for p in ended if not p.complete)


def test_a_question_that_does_not_fit_is_not_asked_and_is_counted(
    assistant: Assistant, questions: list[Record], features: Features
) -> None:
    long = questions[0].model_copy(update={"turns": (Turn(role=Role.USER, text="why " * 80), questions[0].turns[1])})
    found = answer_all(assistant, [long, questions[1]], features, 4, LONGEST)
    assert [p.asked for p in found] == [False, True]
    assert found[0].text == ""


def test_a_model_of_no_numbers_is_refused(assistant: Assistant, questions: list[Record], features: Features) -> None:
    broken = dataclasses.replace(assistant, model=copy.deepcopy(assistant.model))
    with torch.no_grad():
        broken.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="not finite"):
        answer_all(broken, questions[:2], features, 2, 2)


def test_a_template_without_a_place_for_questions_is_refused(
    assistant: Assistant, questions: list[Record], features: Features
) -> None:
    plain = dataclasses.replace(assistant, template=Template.PLAIN)
    with pytest.raises(ConfigError, match="cannot ask"):
        answer_all(plain, questions[:1], features, 1, 1)


def test_the_mean_image_is_the_mean_of_the_pixels() -> None:
    images = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = mean_image([str(i) for i in range(7)], lambda names: images[[int(name) for name in names]], block=3)
    torch.testing.assert_close(found, images.mean(dim=0))
    with pytest.raises(DataError, match="no training image"):
        mean_image([], lambda names: images)

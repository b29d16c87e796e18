from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch

from model.architecture.assembly import Assistant
from model.config import Template
from model.data.dataset import DataSet
from model.data.pixels import PixelSource
from model.data.records import Record, Role, Turn
from model.data.templates import Prompter
from model.errors import ConfigError, DataError, DivergedError
from model.evaluation.generate import Pixels, answer_all, blinded, mean_image

LONGEST = 6


@pytest.fixture(scope="module")
def pixels(assistant: Assistant, phantom: DataSet) -> Pixels:
    source = PixelSource(assistant.image_processor)
    return lambda names: source([phantom.path(name) for name in names])


def test_the_company_of_a_question_does_not_change_its_answer(
    assistant: Assistant, questions: list[Record], pixels: Pixels
) -> None:
    together = answer_all(assistant, questions, pixels, 64, LONGEST)
    assert [p.record_id for p in together] == [r.id for r in questions]
    assert len({p.text for p in together}) > 1  # else the comparison would say nothing
    assert answer_all(assistant, questions, pixels, 5, LONGEST) == together
    some = questions[::4]
    assert answer_all(assistant, some[::-1], pixels, 1, LONGEST)[::-1] == together[::4]


def test_answers_are_those_of_the_plain_generate_of_transformers(
    assistant: Assistant, questions: list[Record], pixels: Pixels
) -> None:
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    some = questions[::6]
    for record, prediction in zip(some, answer_all(assistant, some, pixels, 8, LONGEST), strict=True):
        ids = torch.tensor([prompter.prompt(record.turns[:1], 1)])
        whole = assistant.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels(record.images),
            do_sample=False,
            max_new_tokens=LONGEST,
            eos_token_id=prompter.end_token_id,
            pad_token_id=prompter.pad_token_id,
            use_cache=True,
        )
        assert prediction.text == assistant.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_text_and_several_images_go_together_with_one_image(
    assistant: Assistant, questions: list[Record], pixels: Pixels
) -> None:
    first, second = questions[0].images[0], questions[-1].images[0]
    mixed = [
        questions[0].model_copy(update={"images": images, "id": str(index)})
        for index, images in enumerate([(), (first,), (first, second), (second, first)])
    ]
    together = answer_all(assistant, mixed, pixels, 8, LONGEST)
    alone = [answer_all(assistant, [record], pixels, 1, LONGEST)[0] for record in mixed]
    assert together == alone


def test_each_image_is_asked_for_once_and_equal_questions_are_answered_once(
    assistant: Assistant, questions: list[Record], pixels: Pixels
) -> None:
    asked: list[str] = []

    def counting(names: Sequence[str]) -> torch.Tensor:
        asked.extend(names)
        return pixels(names)

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
        return torch.zeros(len(names), 3, 16, 16)

    answer_all(assistant, blinded(questions), grey, 16, 2)
    assert [list(names) for names in calls] == [["blind"]]


def test_an_answer_ends_with_the_end_token(
    assistant: Assistant, questions: list[Record], pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer_all(assistant, questions[:1], pixels, 1, 1)[0]
    assert (whole.complete, whole.new_tokens) == (False, 1)
    token = assistant.tokenizer.encode(whole.text, add_special_tokens=False)[-1]
    monkeypatch.setattr(Prompter, "end_token_id", token)
    ended = answer_all(assistant, questions, pixels, 16, LONGEST)
    assert (ended[0].text, ended[0].complete, ended[0].new_tokens) == ("", True, 1)
    assert all(p.new_tokens == LONGEST for p in ended if not p.complete)


def test_a_question_that_does_not_fit_is_not_asked_and_is_counted(
    assistant: Assistant, questions: list[Record], pixels: Pixels
) -> None:
    long = questions[0].model_copy(update={"turns": (Turn(role=Role.USER, text="why " * 80), questions[0].turns[1])})
    found = answer_all(assistant, [long, questions[1]], pixels, 4, LONGEST)
    assert [p.asked for p in found] == [False, True]
    assert found[0].text == ""


def test_a_model_of_no_numbers_is_refused(assistant: Assistant, questions: list[Record], pixels: Pixels) -> None:
    broken = dataclasses.replace(assistant, model=copy.deepcopy(assistant.model))
    with torch.no_grad():
        broken.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="not finite"):
        answer_all(broken, questions[:2], pixels, 2, 2)


def test_a_template_without_a_place_for_questions_is_refused(
    assistant: Assistant, questions: list[Record], pixels: Pixels
) -> None:
    plain = dataclasses.replace(assistant, template=Template.PLAIN)
    with pytest.raises(ConfigError, match="cannot ask"):
        answer_all(plain, questions[:1], pixels, 1, 1)


def test_the_mean_image_is_the_mean_of_the_pixels() -> None:
    images = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = mean_image([str(i) for i in range(7)], lambda names: images[[int(name) for name in names]], block=3)
    torch.testing.assert_close(found, images.mean(dim=0))
    with pytest.raises(DataError, match="no training image"):
        mean_image([], lambda names: images)

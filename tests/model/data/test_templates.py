"""Templates: tokens and targets, written out by hand for every template."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from model.batch import IGNORE
from model.config import Template
from model.data import reserved
from model.data.records import Role, Turn
from model.data.templates import Prompter, Rendered, chat_template
from model.errors import ConfigError, DataError
from tests.model.data.tiny_data import build_tokenizer

Q1, A1, Q2, A2 = "What is shown?", "A liver.", "Is it large?", "Yes"
ALL = list(Template)
CHATS = [template for template in Template if template is not Template.PLAIN]

# A star marks a target. Two image tokens; Ġ is a space and Ċ a newline in the tokenizer's own writing.
WITH_SYSTEM_IMAGE_AND_TWO_TURNS = {
    Template.LLAMA3: "<s> <|start_header_id|> system <|end_header_id|> ĊĊ Be Ġbrief . <|eot_id|>"
    " <|start_header_id|> user <|end_header_id|> ĊĊ <image> <image> Ċ What Ġis Ġshown ? <|eot_id|>"
    " <|start_header_id|> assistant <|end_header_id|> ĊĊ *A *Ġliver *. *<|eot_id|>"
    " <|start_header_id|> user <|end_header_id|> ĊĊ Is Ġit Ġlarge ? <|eot_id|>"
    " <|start_header_id|> assistant <|end_header_id|> ĊĊ *Yes *<|eot_id|>",
    Template.VICUNA_V1: "<s> Be Ġbrief . ĠUSER : Ġ <image> <image> Ċ What Ġis Ġshown ? ĠASSISTANT : *ĠA *Ġliver *. *</s>"
    " USER : ĠIs Ġit Ġlarge ? ĠASSISTANT : *ĠYes *</s>",
    Template.VISION_BIOLLM: "<s> Be Ġbrief . ĠUSER : Ġ <image> <image> Ċ What Ġis Ġshown ? ĠASSISTANT : *ĠA *Ġliver *."
    " *<|end_of_text|> USER : ĠIs Ġit Ġlarge ? ĠASSISTANT : *ĠYes *<|end_of_text|>",
    Template.CHATML: "<s> <|im_start|> system Ċ Be Ġbrief . <|im_end|> Ċ <|im_start|> user Ċ <image> <image> Ċ What Ġis Ġshown ?"
    " <|im_end|> Ċ <|im_start|> assistant Ċ *A *Ġliver *. *<|im_end|> Ċ <|im_start|> user Ċ Is Ġit Ġlarge ? <|im_end|> Ċ"
    " <|im_start|> assistant Ċ *Yes *<|im_end|> Ċ",
    Template.MISTRAL: "<s> [INST ] ĠBe Ġbrief . ĊĊ <image> <image> Ċ What Ġis Ġshown ? Ġ[/ INST ] *ĠA *Ġliver *. *</s>"
    " [INST ] ĠIs Ġit Ġlarge ? Ġ[/ INST ] *ĠYes *</s>",
}
BARE = {
    Template.LLAMA3: "<s> <|start_header_id|> user <|end_header_id|> ĊĊ What Ġis Ġshown ? <|eot_id|>"
    " <|start_header_id|> assistant <|end_header_id|> ĊĊ *A *Ġliver *. *<|eot_id|>",
    Template.VICUNA_V1: "<s> USER : ĠWhat Ġis Ġshown ? ĠASSISTANT : *ĠA *Ġliver *. *</s>",
    Template.VISION_BIOLLM: "<s> USER : ĠWhat Ġis Ġshown ? ĠASSISTANT : *ĠA *Ġliver *. *<|end_of_text|>",
    Template.CHATML: "<s> <|im_start|> user Ċ What Ġis Ġshown ? <|im_end|> Ċ"
    " <|im_start|> assistant Ċ *A *Ġliver *. *<|im_end|> Ċ",
    Template.MISTRAL: "<s> [INST ] ĠWhat Ġis Ġshown ? Ġ[/ INST ] *ĠA *Ġliver *. *</s>",
    Template.PLAIN: "<s> *A *Ġliver *. *Ċ",
}


def talk(*texts: str) -> list[Turn]:
    return [Turn(role=Role.ASSISTANT if number % 2 else Role.USER, text=text) for number, text in enumerate(texts)]


def starred(rendered: Rendered, tokenizer: PreTrainedTokenizerFast) -> str:
    tokens = tokenizer.convert_ids_to_tokens(rendered.input_ids)
    for number, label in zip(rendered.input_ids, rendered.labels, strict=True):
        assert label in (IGNORE, number)
    return " ".join(("" if label == IGNORE else "*") + token for token, label in zip(tokens, rendered.labels, strict=True))


@pytest.mark.parametrize("template", CHATS)
def test_targets_are_the_answers_and_their_end_tokens(template: Template, tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = Prompter(tokenizer, template, "Be brief.", 2).render(talk(Q1, A1, Q2, A2), 1)
    assert starred(rendered, tokenizer) == WITH_SYSTEM_IMAGE_AND_TWO_TURNS[template]


@pytest.mark.parametrize("template", ALL)
def test_without_system_and_image_nothing_stands_in_their_place(template: Template, tokenizer: PreTrainedTokenizerFast) -> None:
    assert starred(Prompter(tokenizer, template, "", 2).render(talk(Q1, A1), 0), tokenizer) == BARE[template]


def test_plain_is_the_image_and_its_caption(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = Prompter(tokenizer, Template.PLAIN, "", 2).render(talk(Q1, A1), 1)
    assert starred(rendered, tokenizer) == "<s> <image> <image> *A *Ġliver *. *Ċ"


def test_two_images_stand_one_after_the_other(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = Prompter(tokenizer, Template.CHATML, "", 2).render(talk(Q1, A1), 2)
    assert starred(rendered, tokenizer).startswith("<s> <|im_start|> user Ċ <image> <image> Ċ <image> <image> Ċ What")


def test_a_tokenizer_without_a_beginning_token_gets_none() -> None:
    tokenizer = build_tokenizer(bos=None)
    assert starred(Prompter(tokenizer, Template.VICUNA_V1, "", 1).render(talk(Q1, A1), 0), tokenizer).startswith("USER : ĠWhat")


@pytest.mark.parametrize("words", ["llama3", "gpt2", "metaspace-first", "metaspace-always"])
@pytest.mark.parametrize("template", ALL)
def test_the_model_learns_to_go_on_from_exactly_its_prompt(template: Template, words: str) -> None:
    prompter = Prompter(build_tokenizer(words), template, "", 3)
    prompt, whole = prompter.prompt(talk(Q1), 1), prompter.render(talk(Q1, A1), 1)
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.labels[: len(prompt)] == [IGNORE] * len(prompt)
    first_end = whole.input_ids.index(prompter.end_token_id, len(prompt))
    assert whole.labels[len(prompt) : first_end + 1] == whole.input_ids[len(prompt) : first_end + 1]


def test_where_an_answer_would_change_the_tokens_before_it_the_prompt_stays_what_it_is() -> None:
    tokenizer = build_tokenizer("gpt2")  # writes two newlines as one token at the end of a text, as two in front of a word
    rendered = Prompter(tokenizer, Template.LLAMA3, "", 2).render(talk(Q1, A1), 1)
    assert starred(rendered, tokenizer).endswith("assistant <|end_header_id|> ĊĊ *A *Ġliver *. *<|eot_id|>")


@pytest.mark.parametrize("system", ["", 'Be "brief".\nNow {{ x }} %}'])
@pytest.mark.parametrize("template", ALL)
def test_the_exported_template_gives_the_same_ids_through_transformers(template: Template, system: str) -> None:
    tokenizer = build_tokenizer()
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template(template, system),
    )
    prompter = Prompter(tokenizer, template, system, image_tokens=4)
    for texts in [(Q1,), (Q1, A1, Q2)] if template is not Template.PLAIN else [(Q1,)]:
        for num_images in (0, 1, 2):
            messages = _messages(texts, num_images)
            got = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
            assert list(got["input_ids"][0]) == prompter.prompt(talk(*texts), num_images)


def test_a_system_message_of_the_request_comes_before_the_templates_own(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": Q1}]
    for template in CHATS:
        kwargs = {"add_generation_prompt": True, "tokenize": False}
        own = tokenizer.apply_chat_template(messages[1:], chat_template=chat_template(template, "Be brief."), **kwargs)
        assert tokenizer.apply_chat_template(messages, chat_template=chat_template(template, "Other."), **kwargs) == own


@pytest.mark.parametrize("token", ["<image>", "</s>", "<|eot_id|>", "[INST]", "\uff1cimage\uff1e", "<im\u200bage>", "<pad>"])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_reserved_token_in_a_text_is_refused_and_named_without_the_text(
    token: str, turn: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [Q1, A1]
    texts[turn] += f" secret {token}"
    with pytest.raises(DataError, match=rf"record 'r7', turn {turn}") as caught:
        Prompter(tokenizer, Template.LLAMA3, "", 2).render(talk(*texts), 0, "r7")
    assert "secret" not in str(caught.value)


def test_a_control_id_never_comes_from_text_even_if_the_search_misses_it(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompter = Prompter(tokenizer, Template.LLAMA3, "", 2)
    monkeypatch.setattr(reserved, "find", lambda text, tokens=(): None)
    for token in ("<image>", "<|eot_id|>", "<pad>"):
        with pytest.raises(DataError, match="control token"):
            prompter.render(talk(f"a {token} b", A1), 0)


@pytest.mark.parametrize("template", CHATS)
def test_a_missing_end_token_is_a_configuration_error(template: Template) -> None:
    ends = ("</s>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>")
    with pytest.raises(ConfigError, match="the tokenizer has no token"):
        Prompter(build_tokenizer(without=ends), template, "", 2)


def test_a_missing_image_token_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no token '<image>'"):
        Prompter(build_tokenizer(without=["<image>"]), Template.VICUNA_V1, "", 2)


def test_a_system_text_with_a_control_token_is_a_configuration_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"model\.system holds"):
        Prompter(tokenizer, Template.VICUNA_V1, "Be brief.</s>", 2)


def test_a_prompt_ends_with_the_user_and_a_lesson_with_the_assistant(tokenizer: PreTrainedTokenizerFast) -> None:
    prompter = Prompter(tokenizer, Template.CHATML, "", 2)
    with pytest.raises(DataError, match="ends with the user"):
        prompter.prompt(talk(Q1, A1), 0)
    with pytest.raises(DataError, match="ends with the assistant"):
        prompter.render(talk(Q1), 0)


def test_plain_takes_one_caption(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="has 4 turns; the template `plain` takes one caption"):
        Prompter(tokenizer, Template.PLAIN, "", 2).render(talk(Q1, A1, Q2, A2), 1)


def _messages(texts: Sequence[str], num_images: int) -> list[dict]:
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(texts)
    ]
    images = [{"type": "image", "image": Image.new("RGB", (8, 8))} for _ in range(num_images)]
    messages[0]["content"] = images + messages[0]["content"]
    return messages

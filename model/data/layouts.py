"""The layouts of the templates: once as pieces, once in Jinja, side by side so that they are changed together.

A test renders both and compares the ids. `~` stands for a newline below; the assistant's text A and the token behind it learn.

    llama3         <|begin_of_text|><|start_header_id|>system<|end_header_id|>~~SYSTEM<|eot_id|>
                   <|start_header_id|>user<|end_header_id|>~~<image>~Q<|eot_id|>
                   <|start_header_id|>assistant<|end_header_id|>~~A<|eot_id|>
    vicuna_v1      <s>SYSTEM USER: <image>~Q ASSISTANT: A</s>USER: Q ASSISTANT: A</s>
    vision_biollm  as vicuna_v1, with <|begin_of_text|> and <|end_of_text|>
    chatml         <|im_start|>system~SYSTEM<|im_end|>~<|im_start|>user~<image>~Q<|im_end|>~<|im_start|>assistant~A<|im_end|>~
    mistral        <s>[INST] SYSTEM~~<image>~Q [/INST] A</s>[INST] Q [/INST] A</s>
    plain          <image>A~     (the question is left out)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import Template
from model.data.records import Role, Turn

IMAGE = "<image>"
_HEADED = {
    # start of a turn, end of its header, text before the content, end of the turn, text after it
    Template.LLAMA3: ("<|start_header_id|>", "<|end_header_id|>", "\n\n", "<|eot_id|>", ""),
    Template.CHATML: ("<|im_start|>", "", "\n", "<|im_end|>", "\n"),
}
_ENDS = {
    Template.LLAMA3: "<|eot_id|>",
    Template.CHATML: "<|im_end|>",
    Template.VICUNA_V1: "</s>",
    Template.VISION_BIOLLM: "<|end_of_text|>",
    Template.MISTRAL: "</s>",
    Template.PLAIN: "\n",
}


@dataclass(frozen=True)
class Piece:
    """A part of a rendered conversation."""

    text: str
    target: bool = False
    control: bool = False
    """One token, given by its id and never joined with its neighbours; `<image>` is repeated once for each image token."""


def end_text(template: Template) -> str:
    """What ends an answer: a control token, but in `plain` a newline."""
    return _ENDS[template]


def pieces(template: Template, system: str, turns: Sequence[Turn], num_images: int, bos_token: str | None) -> list[Piece]:
    """The conversation as pieces; if it ends with the user, what stands before the answer is its last piece.

    Args:
        template: Layout.
        system: System text, or empty.
        turns: User and assistant in turn, starting with the user.
        num_images: Images in front of the first user turn.
        bos_token: The tokenizer's beginning-of-text token, if it has one.
    """
    result = [Piece(bos_token, control=True)] if bos_token else []
    if template is Template.PLAIN:
        result += [Piece(IMAGE, control=True)] * num_images
        for turn in turns:
            if turn.role is Role.ASSISTANT:
                result += [Piece(turn.text.strip(), target=True), Piece("\n", target=True, control=True)]
        return result
    layout = _headed if template in _HEADED else _inline
    return result + layout(template, system.strip(), turns, num_images)


def _headed(template: Template, system: str, turns: Sequence[Turn], num_images: int) -> list[Piece]:
    """llama3 and chatml: every turn has a header that names its role."""
    start, closing, before, end, after = _HEADED[template]

    def header(role: str) -> list[Piece]:
        close = [Piece(closing, control=True)] if closing else []
        return [Piece(start, control=True), Piece(role), *close, Piece(before)]

    ending = [Piece(end, control=True), Piece(after)]
    result = [*header("system"), Piece(system), *ending] if system else []
    for number, turn in enumerate(turns):
        if turn.role is Role.USER:
            images = _images(num_images if number == 0 else 0)
            result += [*header("user"), *images, Piece(turn.text.strip()), *ending]
        else:
            learned = [Piece(turn.text.strip(), target=True), Piece(end, target=True, control=True), Piece(after)]
            result += [*header("assistant"), *learned]
    return result + (header("assistant") if turns[-1].role is Role.USER else [])


def _inline(template: Template, system: str, turns: Sequence[Turn], num_images: int) -> list[Piece]:
    """vicuna_v1, vision_biollm and mistral: roles are written as text; only the end of an answer is a control token."""
    if template is Template.MISTRAL:
        first, opening, closing = f"[INST] {system}\n\n" if system else "[INST] ", "[INST] ", " [/INST]"
    else:
        first, opening, closing = f"{system} USER: " if system else "USER: ", "USER: ", " ASSISTANT:"
    result: list[Piece] = []
    for number, turn in enumerate(turns):
        if turn.role is Role.USER:
            head = first if number == 0 else opening
            images = _images(num_images if number == 0 else 0)
            # One piece where nothing stands between: the tokenizer must see the sentence whole.
            said = f"{turn.text.strip()}{closing}"
            result += [Piece(head), *images, Piece(said)] if images else [Piece(head + said)]
        else:
            result += [Piece(f" {turn.text.strip()}", target=True), Piece(end_text(template), target=True, control=True)]
    return result


def _images(number: int) -> list[Piece]:
    """Placeholders with a newline behind each."""
    return [Piece(IMAGE, control=True), Piece("\n")] * number


_JINJA_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% if messages[0]['content'] is string %}{% set system = messages[0]['content'] | trim %}"
    "{% else %}{% set system = messages[0]['content'][0]['text'] | trim %}{% endif %}"
    "{% else %}{% set rest = messages %}{% set system = SYSTEM %}{% endif -%}"
    "{%- macro images(content, after) %}{% if content is not string %}{% for part in content %}"
    "{% if part['type'] == 'image' %}{{ '<image>' + after }}{% endif %}{% endfor %}{% endif %}{% endmacro -%}"
    "{%- macro said(content) %}{% if content is string %}{{ content | trim }}{% else %}{% for part in content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}{% endmacro -%}"
    "{{ bos_token or '' }}"
)
_JINJA_HEADED = (
    "{% if system %}{{ START + 'system' + CLOSING + BEFORE + system + END + AFTER }}{% endif %}"
    "{% for message in rest %}{{ START + message['role'] + CLOSING + BEFORE + images(message['content'], '\\n')"
    " + said(message['content']) + END + AFTER }}{% endfor %}"
    "{% if add_generation_prompt %}{{ START + 'assistant' + CLOSING + BEFORE }}{% endif %}"
)
_JINJA_INLINE = (
    "{% for message in rest %}{% if message['role'] == 'assistant' %}{{ ' ' + said(message['content']) + END }}"
    "{% else %}{{ (FIRST if loop.first else OPENING) + images(message['content'], '\\n') + said(message['content']) + CLOSING }}"
    "{% endif %}{% endfor %}"
)
_JINJA_PLAIN = (
    "{% for message in rest %}{% if message['role'] == 'assistant' %}{{ said(message['content']) + '\\n' }}"
    "{% else %}{{ images(message['content'], '') }}{% endif %}{% endfor %}"
)


def chat_jinja(template: Template, system: str) -> str:
    """The layout as a Jinja chat template (see `model.data.templates.chat_template`)."""
    names = {"SYSTEM": system.strip(), "END": end_text(template)}
    if template is Template.PLAIN:
        body = _JINJA_PLAIN
    elif template in _HEADED:
        names |= dict(zip(("START", "CLOSING", "BEFORE", "END", "AFTER"), _HEADED[template], strict=True))
        body = _JINJA_HEADED
    elif template is Template.MISTRAL:
        names |= {"OPENING": "[INST] ", "CLOSING": " [/INST]"}
        body = "{% set FIRST = '[INST] ' + system + '\\n\\n' if system else '[INST] ' %}" + _JINJA_INLINE
    else:
        names |= {"OPENING": "USER: ", "CLOSING": " ASSISTANT:"}
        body = "{% set FIRST = system + ' USER: ' if system else 'USER: ' %}" + _JINJA_INLINE
    # JSON strings are valid Jinja strings, with newlines and quotes escaped.
    return "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in names.items()) + _JINJA_SYSTEM + body

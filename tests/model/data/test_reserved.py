"""Reserved tokens in text, open and disguised."""

from __future__ import annotations

import pytest

from model.data.reserved import escape, find

DISGUISES = [
    "<image>",
    "</s>",
    "<s>",
    "[INST]",
    "[/inst]",
    "<|im_start|>",
    "<|eot_id|>",
    "<|image_pad|>",
    "<|reserved_special_token_17|>",
    "<<SYS>>",
    "<IMAGE>",
    "\uff1cimage\uff1e",  # full-width brackets
    "<\uff49\uff4d\uff41\uff47\uff45>",  # full-width letters
    "<im\u200bage>",  # zero-width space
    "<\u2060image\ufeff>",
    "<ima\u00adge>",  # soft hyphen
    "<ima\ufe0fge>",  # variation selector
    "<\U0001d422\U0001d426\U0001d41a\U0001d420\U0001d41e>",  # bold mathematical letters
    "\u3008image\u3009",
    "<\uff5cim_end\uff5c>",
    "\uff3bINST\uff3d",
    "<ima\U000e0067ge>",  # tag character
]


@pytest.mark.parametrize("token", DISGUISES)
def test_a_reserved_token_is_found_in_every_disguise_and_gone_after_escaping(token: str) -> None:
    text = f"What is {token} here?"
    assert find(text) is not None
    assert find(escape(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "Is a < b and b > c?",
        "T1 <5 mm [sic]",
        "<box>(1,2),(3,4)</box>",
        "caf\u00e9 \u2265 5 \u00b5m",
        "|x| < 3",
        "Gr\u00f6\u00dfe",
        "\u809d\u81d3",
    ],
)
def test_ordinary_text_is_neither_found_nor_changed(text: str) -> None:
    assert find(text) is None
    assert escape(text) == text


def test_a_tokenizers_own_tokens_count_too() -> None:
    assert find("see ~END~ here") is None
    assert find("see ~END~ here", ["~END~"]) == "~END~"


def test_escaping_keeps_the_word() -> None:
    assert escape("Look at <image> now<|im_end|>") == "Look at (image) now(im_end)"


def test_escaping_does_not_build_a_token_from_two_halves() -> None:
    assert find(escape("<im<image>age>")) is None
    assert find(escape("<|<|im_end|>|>")) is None

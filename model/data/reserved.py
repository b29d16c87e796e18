"""Reserved tokens: texts that a tokenizer would read as control, and that user or assistant text must therefore never hold.

`find` also sees through disguises: full-width letters and brackets (NFKC folds them) and characters without width inside the
token. `escape` is for importers, which must keep a record whose author wrote such a text by chance: `<image>` becomes `(image)`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

COMMON = (
    r"<\|[^|<>\s]{1,60}\|>",
    r"</?s>",
    r"</?(?:image|img|video|pad|unk|mask|bos|eos|im_patch|im_start|im_end|audio)>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"<(?:start|end)_of_(?:turn|text|image)>",
)
"""Control tokens of the language models that people use, as patterns; a tokenizer's own ones come on top."""

_COMMON = re.compile("|".join(COMMON), re.IGNORECASE)
_BRACKETS = re.compile(r"[<>|\[\]/]+")
_LOOK_ALIKES = str.maketrans({"\u2329": "<", "\u232a": ">", "\u3008": "<", "\u3009": ">", "\u2039": "<", "\u203a": ">"})
_SOFT_HYPHEN_AND_FILLERS = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"


def plain(text: str) -> str:
    """`text` without disguises: NFKC folded, characters without width removed."""
    folded = "".join(c for c in text if not _has_no_width(c))
    folded = unicodedata.normalize("NFKC", folded).translate(_LOOK_ALIKES)
    return "".join(c for c in folded if not _has_no_width(c))


def find(text: str, tokens: Iterable[str] = ()) -> str | None:
    """The first reserved token in `text` (after `plain`), or None.

    Args:
        text: Text of a turn.
        tokens: Control tokens of the tokenizer in use, on top of the common ones.
    """
    # Most texts are ASCII: they need no folding.
    folded = text if text.isascii() else plain(text)
    match = _COMMON.search(folded)
    return match.group() if match else next((token for token in tokens if token in text or token in folded), None)


def escape(text: str) -> str:
    """`text` with every reserved token written in round brackets; unchanged, byte for byte, if it holds none."""
    if find(text) is None:
        return text
    folded = plain(text)
    while find(folded) is not None:
        # A replacement can bring two halves of another token together, so look again.
        folded = _COMMON.sub(lambda match: f"({_BRACKETS.sub('', match.group())})", folded)
    return folded


def _has_no_width(character: str) -> bool:
    """Format characters (zero-width space and joiners, direction marks, tags), variation selectors and blank fillers."""
    if character.isascii():
        return False
    return (
        unicodedata.category(character) == "Cf"
        or character in _SOFT_HYPHEN_AND_FILLERS
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
    )

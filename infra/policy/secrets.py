"""What looks like a secret: by the name of its variable, by the form of known keys, by the randomness of a long word."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

NAMED = re.compile(
    r"password|passwd|(?:^|[_-])(?:secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)(?:$|[_-])", re.I
)
A_PLACE = re.compile(r"(?:_FILE|_PATH|_NAME|_MODE|_URI|_URL)$", re.I)
KNOWN = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|glpat-[\w-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.|://[^/\s:@]+:[^/\s:@]+@"
)
WORD = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
DIGEST = re.compile(r"^[0-9a-f]{32,64}$")
BITS = 4.2
"""A word of 24 or more random letters has above 4.2 bits a letter; names and paths stay below 4."""


def looks_random(word: str) -> bool:
    """True for a long word of the randomness of a key. A digest is no secret."""
    if DIGEST.match(word) or not (re.search(r"\d", word) and re.search(r"[a-z]", word) and re.search(r"[A-Z]", word)):
        return False
    counts = Counter(word).values()
    return -sum(n / len(word) * math.log2(n / len(word)) for n in counts) > BITS


def secret_in_words(words: Iterable[Any]) -> Iterator[str]:
    """A line for each text with something secret in it; the text itself is not repeated."""
    for number, text in enumerate(map(str, words)):
        if KNOWN.search(text):
            yield f"word {number + 1} has the form of a known kind of key"
        elif any(looks_random(word) for word in WORD.findall(text)):
            yield f"word {number + 1} holds a long random text"


def secret_in_env(env: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each variable whose value is, or by its name would be, a secret."""
    for entry in env:
        name, value = str(entry.get("name", "")), str(entry.get("value") or "")
        if value and NAMED.search(name) and not A_PLACE.search(name):
            yield f"{name} is given by value"
        elif list(secret_in_words([value])):
            yield f"the value of {name} looks like a secret"

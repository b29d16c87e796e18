"""A withdrawal: everything that an answer names is marked, so that it is neither promoted nor learned from again.

1. Each checkpoint, export, base model and data set gets a mark in the store (`marks`); the list itself stays there as hashes (`listed`).
2. Each version gets an entry of kind `withdrawal` in the ledger of its model, which then refuses to promote it, and a tag for readers.
3. `withdrawn(settings, tags)` says why a version must not be promoted: its tag, or a mark of anything it was made from.

Doing it twice changes nothing; a process that died half-way is repaired by the same command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.platform import champion
from components.platform.impact import listed, marks
from components.platform.impact.answer import Answer
from components.platform.impact.marks import Notice
from components.platform.impact.question import Item
from components.platform.ledger import acts
from components.platform.ledger.registry import Book
from components.platform.settings import Settings
from components.platform.store import open_store
from components.platform.tracking import Tracking

TAG = "biovlm.withdrawn"
LIST = "withdrawal_list"
"""Name of the list's digest among the evidence of the ledger."""


@dataclass(frozen=True)
class Marked:
    """What a withdrawal marked."""

    versions: tuple[tuple[str, str], ...]
    artifacts: int
    sets: int


def withdraw(settings: Settings, items: Iterable[Item], answer: Answer, notice: Notice) -> Marked:
    """Mark all that learned from what was withdrawn, and keep the list for what will be imported.

    Raises:
        CannotWriteError, MissingInputError: As store and registry say; the same command goes on.
    """
    store = open_store(settings)
    listed.keep(store, items, notice.list_digest)
    for digest in (*answer.artifacts, *(found.digest for found in answer.sets)):
        marks.mark(store, digest, notice)
    versions = tuple((one.model, one.number) for one in answer.learned if not one.gone)
    for model in sorted({model for model, _ in versions}):
        book = Book(settings, model)
        for number in (number for name, number in versions if name == model):
            acts.withdraw(book, number, notice.by, notice.reason, {LIST: notice.list_digest})
            _tag(book.tracking, model, number, notice)
    return Marked(versions, len(answer.artifacts), len(answer.sets))


def withdrawn(settings: Settings, tags: Mapping[str, str]) -> tuple[str, ...]:
    """Why the version with these tags must not be promoted, sorted; empty if it may.

    Raises:
        MissingInputError: The store does not answer.
    """
    place, digest = (tags.get(name, "") for name in (champion.CHECKPOINT_PATH, champion.CHECKPOINT_DIGEST))
    said = marks.reasons(open_store(settings), place, digest)
    return tuple(sorted({*filter(None, tags.get(TAG, "").split("; ")), *said}))


def _tag(tracking: Tracking, model: str, number: str, notice: Notice) -> None:
    before = str(tracking.client.get_model_version(model, number).tags.get(TAG, ""))
    if notice.text not in before.split("; "):
        tracking.client.set_model_version_tag(model, number, TAG, "; ".join(filter(None, (before, notice.text))))

"""A withdrawal: everything that an answer names is marked, so that it is neither promoted nor learned from again.

1. Each checkpoint, export, base model and data set gets a mark in the store (`marks`); the list itself stays there as hashes (`listed`).
2. Each version gets an entry of kind `withdrawal` in the ledger of its model, which then refuses to promote it, and a tag for readers.
3. A list that was a mistake is taken back (`undo`): an entry `reinstatement` with a reason for each version, the tag follows, and last the
   store says that its marks do not count (`rounds`). What another list withdrew stays withdrawn. For a list that was wrong in part:
   take it back, and withdraw the right one.

Doing either twice changes nothing; a process that died half-way is repaired by the same command, and what it left undone stays refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from components.platform import versions
from components.platform.impact import listed, marks, rounds
from components.platform.impact.answer import Answer
from components.platform.impact.marks import Notice
from components.platform.impact.question import Item
from components.platform.ledger import acts, registry
from components.platform.ledger.entry import LIST
from components.platform.ledger.registry import Book
from components.platform.settings import Settings
from components.platform.store import open_store
from model.errors import MissingInputError

TAG = "biovlm.withdrawn"
SHORTEST = 8
"""Hex digits by which a list can be named."""


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
    found = tuple((one.model, one.number) for one in answer.learned if not one.gone)
    for model in sorted({model for model, _ in found}):
        book = Book(settings, model)
        for number in (number for name, number in found if name == model):
            acts.withdraw(book, number, notice.by, notice.reason, {LIST: notice.list_digest})
            _tag(book, number)
    return Marked(found, len(answer.artifacts), len(answer.sets))


def undo(settings: Settings, list_digest: str, by: str, reason: str) -> tuple[tuple[str, str], ...]:
    """Take back the withdrawal of a list; (model, number) of the versions that it had marked.

    Args:
        settings: Where store and registry are.
        list_digest: SHA-256 of the list (`find` knows it by its beginning).
        by: Who says so.
        reason: Why.

    Raises:
        UsageError: No reason. CannotWriteError, MissingInputError: As store and registry say; the same command goes on.
    """
    store = open_store(settings)
    name = rounds.present(store, list_digest)
    found = withdrawn_by(settings, list_digest)
    for model in sorted({model for model, _ in found}):
        book = Book(settings, model)
        for number in (number for name, number in found if name == model):
            acts.reinstate(book, number, by, reason, {LIST: list_digest})
            _tag(book, number)
    rounds.take_back(store, name, by, reason)
    return found


def withdrawn_by(settings: Settings, list_digest: str) -> tuple[tuple[str, str], ...]:
    """(Model, number) of every version that a list withdrew, as the ledgers tell."""
    found = []
    for model in versions.models(settings):
        standing = registry.standing(settings, model)
        held = standing.state.withdrawals if standing else {}
        found += [(model, number) for number in sorted(held, key=int) if list_digest in held[number]]
    return tuple(found)


def find(settings: Settings, beginning: str) -> str:
    """The list with this SHA-256, or the one whose SHA-256 begins so, of those whose withdrawal holds.

    Raises:
        MissingInputError: None does, or several do.
    """
    lists = [rounds.list_of(name) for name in listed.known(open_store(settings))]
    found = [one for one in lists if len(beginning) >= SHORTEST and one.startswith(beginning)]
    if len(found) != 1:
        known = ", ".join(one[: marks.SHOWN] for one in lists) or "none"
        raise MissingInputError(
            f"{len(found)} withdrawals that hold are of a list {beginning!r}", f"give the beginning of its digest: {known}"
        )
    return found[0]


def _tag(book: Book, number: str) -> None:
    """The tag of a version, for readers: every withdrawal of it that holds, as the ledger tells."""
    held = acts.state(book.entries()).withdrawals.get(number, {})
    said = "; ".join(marks.Notice(of, entry.by, entry.reason).text for of, entry in sorted(held.items()))
    tags = book.tracking.numbered_tags(book.name, number)
    if tags is None:
        return  # deleted since; the ledger keeps what was said
    if said:
        book.tracking.client.set_model_version_tag(book.name, number, TAG, said)
    elif TAG in tags:
        book.tracking.client.delete_model_version_tag(book.name, number, TAG)

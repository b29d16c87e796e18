"""`biovlm registry approve | promote | rollback | reconcile`: acts of persons, each an entry of the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UsageError
from pipelines import output
from pipelines.cli_options import Json

if TYPE_CHECKING:
    from components.platform.ledger.acts import Done
    from components.platform.ledger.registry import Book

Address = Annotated[str, typer.Argument(help="models:/NAME/NUMBER or models:/NAME@challenger.", metavar="MODEL")]
Name = Annotated[str, typer.Argument(help="A registered model.", metavar="NAME")]


def approve(model: Address, json: Json = False) -> None:
    """Approve a nominated version, signed with your key (BIOVLM_ACTOR_KEY)."""
    from components.platform.ledger import acts

    book, version = _found(model)
    _say(book, acts.approve(book, version, acts.person(book.settings)), json)


def promote(model: Address, json: Json = False) -> None:
    """Make a nominated version champion, once it is approved as its recipe asks."""
    from components.platform.ledger import acts, proof

    book, version = _found(model)
    _say(book, acts.promote(book, version, acts.person(book.settings), lambda goal: proof.of_version(book, goal)), json)


def rollback(
    name: Name,
    to: Annotated[
        str, typer.Option("--to", help="Number of the version to go back to; `registry history` shows it as previous.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, in a sentence; it stands in the ledger for good.")],
    json: Json = False,
) -> None:
    """Make an earlier champion champion again, after its signatures and licences were verified."""
    from components.platform.ledger import acts, proof

    if not to.isdecimal():
        raise UsageError(f"--to is {to!r}", "give the number of a version: --to 3")
    book = _book(name)
    by = acts.person(book.settings).name
    _say(book, acts.rollback(book, to, by, reason, lambda goal: proof.of_version(book, goal)), json)


def reconcile(name: Name, json: Json = False) -> None:
    """Put the aliases where the ledger has them, and tell what was not told; says what it found."""
    from components.platform.ledger import acts

    book = _book(name)
    _say(book, acts.reconcile(book, acts.person(book.settings).name), json)


def _found(address: str) -> tuple[Book, str]:
    from components.platform import versions
    from components.platform.settings import Settings

    found = versions.find(Settings.from_environment(), address)
    return _book(found.name), found.version


def _book(name: str) -> Book:
    from components.platform.ledger.registry import Book
    from components.platform.settings import Settings

    return Book(Settings.from_environment(), name)


def _say(book: Book, done: Done, json: bool) -> None:
    if json:
        output.emit_json(
            {
                "model": book.name,
                "entry": done.entry.model_dump(mode="json") | {"digest": done.entry.digest} if done.entry else None,
                "new": done.new,
                "aliases": done.aliases,
                "drift": [{"alias": one.alias, "found": one.found, "wanted": one.wanted} for one in done.drift],
                "told": done.delivery.told,
                "waiting": done.delivery.waiting,
            }
        )
        return
    for one in done.drift:
        output.emit(f"repaired: {one}")
    if done.entry:
        again = "" if done.new else " (it was done already)"
        output.emit(
            f"entry {done.entry.number}: {done.entry.kind.value} of version {done.entry.version} by {done.entry.by}{again}"
        )
    aliases = ", ".join(f"{alias} {version}" for alias, version in sorted(done.aliases.items())) or "none"
    output.emit(f"{book.name}: {aliases}")
    if done.delivery.waiting:
        output.say(f"hint: {done.delivery.waiting} notices wait for the webhook; `biovlm registry reconcile` tries again")

"""What can be done to a registered model, from the first look to the last notice.

1. The registry is reconciled with the ledger first (not for a rollback: it must work while the champion is gone).
2. What must be true of the version is looked at: it is in the registry, the run that made it was not deleted.
3. The act is appended, or found to be done, or refused (`rules`). Until here nothing has changed.
4. The aliases follow, and the outbox tells. A process that is killed between leaves what the next `reconcile` finishes.

Any number of processes may do the same act: one entry, and the same answer for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from components.platform.ledger import approvals, outbox, rules
from components.platform.ledger.approvals import Person
from components.platform.ledger.chain import state
from components.platform.ledger.entry import LIST, Entry, Kind
from components.platform.ledger.ledger import Appended, Claim, Propose
from components.platform.ledger.outbox import Delivery
from components.platform.ledger.registry import Book, Drift
from components.platform.ledger.rules import Candidate
from components.platform.settings import Settings
from model.errors import MissingInputError, RefusedError, UsageError
from model.manifest import digest_of

Proof = Callable[[str], dict[str, str]]
"""From a version to what was verified of it, name -> digest; raises what refuses it."""


@dataclass(frozen=True)
class Done:
    """What an act came to."""

    entry: Entry | None
    """The entry of the act, of this call or of an earlier one; None if the model stood there already."""
    new: bool
    aliases: dict[str, str]
    """Where the ledger has the aliases after it."""
    drift: list[Drift] = field(default_factory=list)
    """What was found elsewhere, and put back."""
    delivery: Delivery = field(default_factory=Delivery)


def person(settings: Settings) -> Person:
    """Who acts in this process. RefusedError: Their key is nobody's, or open to others."""
    return approvals.actor(settings.actor_key, settings.approvers, settings.actor)


def reconcile(book: Book, by: str) -> Done:
    """Put right what drifted, and tell what was not told."""
    drift = book.reconcile(by)
    return _finish(book, Appended(None, new=False), drift)


def offer(book: Book, found: Candidate, by: str, key: str, claim: Claim | None = None) -> Done:
    """Promote or nominate a version that passed the gate.

    Args:
        book: Of its model.
        found: The version, and what it was measured with.
        by: Whose run it is.
        key: Of the act, 64 hex digits.
        claim: Of the attempt.

    Raises:
        RefusedError: Withdrawn, or another champion reigns by now, or a newer attempt is at work. MissingInputError: The version is gone,
        or its run was deleted.
    """
    drift = book.reconcile(by)
    _present(book, found.version)
    return _act(book, key, lambda entries: rules.candidate(state(entries), found, by), drift, claim)


def approve(book: Book, version: str, by: Person) -> Done:
    """Approve the nomination of a version. Errors of `rules.approval`."""
    drift = book.reconcile(by.name)
    _present(book, version)
    now, known = book.clock(), state(book.entries())
    nomination = rules.nominated(known, version)
    before = rules.expired_of(rules.approvals_of(known, nomination, by.name), nomination, now)
    key = digest_of(["approval", nomination.digest, by.name, len(before)])
    sign = partial(_signed, book.settings)
    return _act(book, key, lambda entries: rules.approval(state(entries), version, by, sign, book.name, now), drift)


def promote(book: Book, version: str, by: Person, proof: Proof) -> Done:
    """Promote a nominated version. Errors of `rules.promotion` and of `proof`."""
    drift = book.reconcile(by.name)
    _present(book, version)
    nomination = state(book.entries()).nominated.get(version)
    if nomination is not None:
        proof(version)
    asked = nomination is not None and nomination.terms.get("approvals", 0) > 0
    keys = approvals.keys(book.settings.approvers) if asked else {}
    key = digest_of(["promotion", book.name, version, nomination.digest if nomination else ""])
    return _act(book, key, lambda entries: rules.promotion(state(entries), version, by, book.clock(), keys), drift)


def rollback(book: Book, version: str, by: str, reason: str, proof: Proof) -> Done:
    """Make an earlier champion champion again.

    Args:
        book: Of the model.
        version: The goal.
        by: Who asks.
        reason: Why, in a sentence.
        proof: What is verified of the goal.

    Raises:
        UsageError: No reason. RefusedError, MissingInputError: As `rules.rollback` and `proof` say; nothing has changed then.
    """
    if not reason.strip():
        raise UsageError("a rollback needs a reason", "say in a sentence why: --reason '...'")
    known = state(book.entries())
    rules.rollback(known, version, by, reason, {})
    if not book.tracking.numbered_tags(book.name, version):
        raise MissingInputError(f"version {version} of {book.name} is gone from the registry", "name another with --to")
    evidence = proof(version)
    key = digest_of(["rollback", book.name, known.since, version])
    return _act(book, key, lambda entries: rules.rollback(state(entries), version, by, reason, evidence), [])


def withdraw(book: Book, version: str, by: str, reason: str, evidence: Mapping[str, str]) -> Done:
    """Say that a version may not be promoted any more.

    Args:
        book: Of the model.
        version: Its number.
        by: Who says so.
        reason: Why; no content of records.
        evidence: What it rests on, name -> digest.
    """
    drift = book.reconcile(by)
    key = digest_of(["withdrawal", book.name, version, *_round(book, version, evidence)])
    return _act(book, key, lambda entries: rules.withdrawal(state(entries), version, by, reason, evidence), drift)


def reinstate(book: Book, version: str, by: str, reason: str, evidence: Mapping[str, str]) -> Done:
    """Take back a withdrawal that was a mistake.

    Args:
        book: Of the model.
        version: Its number.
        by: Who says so.
        reason: Why, in a sentence; no content of records.
        evidence: The list whose withdrawal is taken back, under `entry.LIST`.

    Raises:
        UsageError: No reason.
    """
    if not reason.strip():
        raise UsageError("taking back a withdrawal needs a reason", "say in a sentence why: --reason '...'")
    drift = book.reconcile(by)
    key = digest_of(["reinstatement", book.name, version, *_round(book, version, evidence)])
    return _act(book, key, lambda entries: rules.reinstatement(state(entries), version, by, reason, evidence), drift)


def _round(book: Book, version: str, evidence: Mapping[str, str]) -> tuple[str, int]:
    """The list of a withdrawal, and how often it was taken back: what is withdrawn again is another act."""
    of = evidence.get(LIST, "")
    back = (one for one in book.entries() if one.kind is Kind.REINSTATEMENT and one.version == version)
    return of, sum(one.evidence.get(LIST, "") == of for one in back)


def _act(book: Book, key: str, propose: Propose, drift: list[Drift], claim: Claim | None = None) -> Done:
    book.entries()
    return _finish(book, book.ledger.append(key, propose, claim), drift)


def _finish(book: Book, done: Appended, drift: list[Drift]) -> Done:
    book.project()
    aliases = dict(state(book.ledger.entries()).aliases)
    return Done(done.entry, done.new, aliases, drift, outbox.deliver(book.settings, book.ledger))


def _signed(settings: Settings, content: bytes) -> str:
    if settings.actor_key is None:
        raise RefusedError("nobody knows who approves", "set BIOVLM_ACTOR_KEY to the file of your own key")
    return approvals.sign(settings.actor_key, content)


def _present(book: Book, version: str) -> None:
    """The version and its run must be there: what nobody can look up any more is not promoted."""
    if book.tracking.numbered_tags(book.name, version) is None:
        raise MissingInputError(
            f"version {version} of {book.name} is gone from the registry", "run the recipe again: it registers it anew"
        )
    if not book.tracking.run_is_there(book.name, version):
        raise MissingInputError(
            f"the run that registered version {version} of {book.name} was deleted",
            "`mlflow runs restore --run-id ...` brings it back, or run the recipe again",
        )

"""The registry follows the ledger: aliases are its projection, and drift is put right and told.

1. `standing` reads where a model stands: the ledger decides; a ledger that has not begun takes what the registry says. Without MLflow's
   import where that can be, since every run asks.
2. `Book.reconcile` compares the aliases with the ledger. What lags behind an entry of the last minute is a move on its way. Anything else
   was moved by hand, or is what a killed process left: it becomes an entry of kind `repair`. A ledger that begins writes down first
   which aliases it found.
3. `Book.project` sets what differs, and looks at the ledger again afterwards. It ends only when nothing was written meanwhile, so
   whoever sets an alias last sets it to what the ledger says last, in whatever order processes run.
4. The registry remembers the ledger's last entry in a tag of the model (`biovlm.ledger`), so that a ledger that lost its end, or was
   written anew, is found out.

A ledger belongs to one registered model of one registry, by the time of its creation: another registry has another ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from components.platform import peek
from components.platform.ledger import chain
from components.platform.ledger.chain import State, state
from components.platform.ledger.entry import ALIASES, CHAMPION, Entry, Kind
from components.platform.ledger.ledger import Draft, Ledger
from components.platform.peek import Registered
from components.platform.places import open_place
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.errors import InternalError, MissingInputError
from model.manifest import digest_of

ANCHOR = "biovlm.ledger"
UNDER_WAY_SECONDS = 60.0
"""How long an alias may lag behind its entry before it counts as drift."""
MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Standing:
    """Where a model stands."""

    state: State
    entries: tuple[Entry, ...]

    @property
    def since(self) -> int:
        """Number of the entry that made the champion; what a ledger that has not begun finds will be its first entry."""
        return self.state.since or (1 if self.state.champion else 0)


@dataclass(frozen=True)
class Drift:
    """An alias that was not where the ledger has it, and was put back."""

    alias: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.alias} was at version {self.found or 'none'}, and is at {self.wanted or 'none'} again"


def standing(settings: Settings, name: str) -> Standing | None:
    """Where a model stands; None if the registry has no such model.

    Raises:
        MissingInputError: The tracking store does not answer, or entries are missing. RefusedError: The ledger was changed.
    """
    facts = registered(settings, name)
    if facts is None:
        return None
    entries = ledger_of(settings, name, facts).entries()
    chain.against(entries, facts.tags.get(ANCHOR, ""))
    if not entries:
        return Standing(State(aliases=_ours(facts.aliases)), ())
    return Standing(state(entries), entries)


def registered(settings: Settings, name: str) -> Registered | None:
    """What the registry holds of a model; None if it has none of this name."""
    if peek.is_missing(settings.tracking_uri):
        return None
    try:
        return peek.registered(settings.tracking_uri, name)
    except peek.Unknown:
        return Tracking(settings).registered(name)


def ledger_of(settings: Settings, name: str, facts: Registered, clock: Callable[[], float] = time.time) -> Ledger:
    """The ledger of a registered model."""
    return Ledger(open_place(settings, name, facts.mark), name, clock)


class Book:
    """The ledger of a registered model, with the registry that follows it.

    Args:
        settings: Of this process.
        name: The registered model.
        clock: Seconds since 1970.
    """

    def __init__(self, settings: Settings, name: str, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.name, self.clock = settings, name, clock
        self.tracking = Tracking(settings)
        self.ledger = ledger_of(settings, name, self.facts(), clock)

    def facts(self) -> Registered:
        """What the registry holds. MissingInputError if the model is gone."""
        found = self.tracking.registered(self.name)
        if found is None:
            raise MissingInputError(f"no registered model {self.name!r}", "`biovlm registry list` says which there are")
        return found

    def entries(self) -> tuple[Entry, ...]:
        """The entries, proved against what the registry remembers."""
        anchor = self.facts().tags.get(ANCHOR, "")  # first: the ledger only grows
        entries = self.ledger.entries()
        chain.against(entries, anchor)
        return entries

    def reconcile(self, by: str) -> list[Drift]:
        """Put the aliases where the ledger has them; what had to be put right, told in the ledger where it was no move on its way.

        Raises:
            RefusedError, MissingInputError: The ledger is broken; nothing is changed then.
        """
        facts = self.facts()
        found = _ours(facts.aliases)
        entries = self.entries()
        if not entries and found:
            self.ledger.append(digest_of(["adoption", self.name, facts.mark]), lambda now: _adoption(now, found, by))
            entries = self.ledger.entries()
        head = entries[-1].digest if entries else ""
        self.ledger.append(digest_of(["repair", self.name, head, found]), lambda now: _repair(now, found, by, self.clock()))
        drift = drifted(state(entries), found)
        self.project()
        return drift

    def project(self) -> None:
        """Set every alias that is not where the ledger has it, until nothing is written meanwhile.

        Raises:
            MissingInputError: A version that has an alias is gone from the registry; the other aliases are set.
        """
        for _ in range(MOST_ROUNDS):
            facts, entries = self.facts(), self.ledger.entries()
            moving = drifted(state(entries), _ours(facts.aliases))
            gone = [one for one in moving if not self.tracking.move_alias(self.name, one.alias, one.wanted)]
            anchor = chain.anchor_of(entries)
            if anchor and facts.tags.get(ANCHOR) != anchor:
                self.tracking.remember(self.name, ANCHOR, anchor)
            if len(self.ledger.entries()) == len(entries):
                return _all_there(self.name, gone)
        raise InternalError(f"the ledger of {self.name} does not come to rest", "look at who writes to it")


def drifted(now: State, found: Mapping[str, str]) -> list[Drift]:
    """Aliases that are not where the ledger has them."""
    pairs = ((alias, found.get(alias, ""), now.aliases.get(alias, "")) for alias in ALIASES)
    return [Drift(alias, there, wanted) for alias, there, wanted in pairs if there != wanted]


def _adoption(entries: Sequence[Entry], found: Mapping[str, str], by: str) -> Draft | None:
    if entries:
        return None
    reason = "the ledger begins: these aliases were in the registry before"
    return Draft(Kind.REPAIR, found.get(CHAMPION, next(iter(found.values()))), by, dict(found), reason)


def _repair(entries: Sequence[Entry], found: Mapping[str, str], by: str, now: float) -> Draft | None:
    """What to write about drift; None if there is none, or it is a move on its way."""
    if not entries:
        return None
    drift = drifted(state(entries), found)
    young = next((at for at, entry in enumerate(entries) if entry.seconds >= now - UNDER_WAY_SECONDS), len(entries))
    lately = [state(entries[:at]).aliases for at in range(young, len(entries) + 1)]
    strange = [one for one in drift if one.found not in {aliases.get(one.alias, "") for aliases in lately}]
    if not strange:
        return None
    version = strange[0].wanted or strange[0].found
    return Draft(Kind.REPAIR, version, by, {}, "; ".join(map(str, strange)))


def _ours(aliases: Mapping[str, str]) -> dict[str, str]:
    return {alias: aliases[alias] for alias in ALIASES if alias in aliases}


def _all_there(name: str, gone: Sequence[Drift]) -> None:
    for one in gone:
        raise MissingInputError(
            f"version {one.wanted} of {name}, which the ledger has as {one.alias}, is gone from the registry",
            f"`biovlm registry rollback {name} --to NUMBER --reason ...` makes an earlier champion champion again",
        )

"""The ledger of one registered model: entries that only grow, in one order for all who write.

1. `append(key, propose)` reads the chain, and asks `propose` (pure) what is to be written after it. The entry is created under the next
   number; if another process got that number first, all begins again with what that one wrote. So every act is decided on the very
   state that it follows, and acts are in one order.
2. An act has a key. If the chain holds an entry of the key, the act was done: that entry is the answer, and nothing is written.
3. `claim(run)` numbers the attempts of a run. An old attempt that wakes up finds the newer claim and may append nothing (exit 77); what
   it had to say, the newer one says under the same key.

Nothing here knows MLflow: `components.platform.ledger.registry` brings the aliases after.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from components.platform.ledger.chain import breaks, whole
from components.platform.ledger.entry import START, Entry, Kind, iso, render
from components.platform.places import Place
from model.errors import BiovlmError, InternalError, RefusedError

MOST_TRIES = 200
"""Each lost number means that another process wrote an entry, so this many acts would have to come between."""
ENTRIES, CLAIMS = "entries/", "claims/"


@dataclass(frozen=True)
class Draft:
    """An act that is not written yet: an entry without its place in the chain."""

    kind: Kind
    version: str
    by: str
    moves: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    evidence: dict[str, str] = field(default_factory=dict)
    terms: dict[str, int] = field(default_factory=dict)
    signature: str = ""
    time: str = ""
    """Of what was signed; else now."""


@dataclass(frozen=True)
class Claim:
    """The right of one attempt of a run to append."""

    run: str
    attempt: int


@dataclass(frozen=True)
class Appended:
    """What `append` did."""

    entry: Entry | None
    """The entry of the act; None if there was nothing to do."""
    new: bool
    """Whether this call wrote it."""


Propose = Callable[[tuple[Entry, ...]], Draft | None]


class Ledger:
    """The entries of one model at a place."""

    def __init__(self, place: Place, model: str, clock: Callable[[], float] = time.time) -> None:
        self.place, self.model, self.clock = place, model, clock
        self._seen: dict[str, bytes] = {}
        self._proved: tuple[Entry, ...] = ()

    def contents(self) -> dict[int, bytes]:
        """Number -> bytes of the files of all entries; a file of another name counts as number 0, which no entry has.

        What this object has read once it does not read again: entries do not change, and who wants proof takes a new object.
        """
        names = self.place.names(ENTRIES)
        # A listing is no picture of one moment: it may show an entry and lack the one before, made while it went on.
        between = {_file(number) for number in range(1, max(map(_number, names), default=0))}
        self._seen |= self.place.several(sorted({*names, *between} - self._seen.keys()))
        return {_number(name): content for name, content in self._seen.items()}

    def entries(self) -> tuple[Entry, ...]:
        """All entries, proved to be one chain of this model.

        Raises:
            RefusedError: One is torn, changed, a stranger, or follows another history. MissingInputError: One is missing.
        """
        contents = self.contents()
        if 0 in contents:
            raise RefusedError("a file in the ledger is no entry", f"only entries may lie in {ENTRIES} of the ledger; remove it")
        found = whole(contents, self._proved)
        strange = next((entry for entry in found if entry.model != self.model), None)
        if strange is not None:
            raise RefusedError(
                f"entry {strange.number} of the ledger of {self.model} is about {strange.model}", "a ledger was copied over it"
            )
        self._proved = found
        return found

    def verify(self) -> list[tuple[int, BiovlmError]]:
        """(number, letter) of every break of the chain; empty if it is whole."""
        return list(breaks({number: content for number, content in self.contents().items() if number}))

    def append(self, key: str, propose: Propose, claim: Claim | None = None) -> Appended:
        """Do an act once.

        Args:
            key: Of the act, 64 hex digits.
            propose: From the entries so far to the act; None if there is nothing to do; raises what refuses it.
            claim: Of the attempt that acts, if it is one of several.

        Raises:
            RefusedError: The chain is broken, or a newer attempt of the run is at work; and what `propose` raises.
            InternalError: The place gives no number, however often it is asked.
        """
        for attempt in range(MOST_TRIES):
            entries = self.entries()
            done = next((entry for entry in entries if entry.key == key), None)
            if done is not None:
                return Appended(done, new=False)
            draft = propose(entries)
            if draft is None:
                return Appended(None, new=False)
            if claim is not None:
                self._fence(claim)
            entry = self._entry(entries, draft, key, claim)
            if self.place.create(_file(entry.number), render(entry)):
                return Appended(entry, new=True)
            time.sleep(random.uniform(0, 0.002) * min(attempt, 20))  # many writers: let the one before finish
        raise InternalError(
            f"the ledger of {self.model} took no entry in {MOST_TRIES} tries",
            "look at who writes to it; the same command goes on",
        )

    def claim(self, run: str) -> Claim:
        """The next attempt of `run`, a name of letters, digits, dots, underscores and dashes."""
        attempt = max(self._claims(run), default=0) + 1
        while not self.place.create(f"{CLAIMS}{run}/{attempt:06d}", b"\n"):
            attempt += 1
        return Claim(run, attempt)

    def _fence(self, claim: Claim) -> None:
        newest = max(self._claims(claim.run), default=0)
        if newest > claim.attempt:
            raise RefusedError(
                f"attempt {claim.attempt} of run {claim.run} is stale: attempt {newest} has begun",
                "nothing was written; the newer attempt does the same",
            )

    def _claims(self, run: str) -> Iterator[int]:
        return (int(PurePosixPath(name).name) for name in self.place.names(f"{CLAIMS}{run}/"))

    def _entry(self, entries: tuple[Entry, ...], draft: Draft, key: str, claim: Claim | None) -> Entry:
        return Entry(
            number=len(entries) + 1,
            previous=entries[-1].digest if entries else START,
            time=draft.time or iso(self.clock()),
            kind=draft.kind,
            model=self.model,
            version=draft.version,
            moves=draft.moves,
            by=draft.by,
            reason=draft.reason,
            evidence=draft.evidence,
            terms=draft.terms,
            signature=draft.signature,
            key=key,
            attempt=claim.attempt if claim else 1,
        )


def _file(number: int) -> str:
    return f"{ENTRIES}{number:08d}.json"


def _number(name: str) -> int:
    stem = PurePosixPath(name).name.removesuffix(".json")
    return int(stem) if stem.isdecimal() and name == _file(int(stem)) else 0

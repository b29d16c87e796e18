"""What the ledger's entries say together: whether they are one unbroken chain, and where each alias stands. Pure.

1. `breaks(contents)` names every place where the chain is broken; `whole(contents)` is the entries, or the letter of the first break.
2. `against(entries, anchor)` compares with the last digest that the registry remembers: entries cut off at the end, or another
   history since, leave a chain that is whole in itself.
3. `state(entries)` is the projection: aliases, reigns, nominations, approvals, withdrawals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from components.platform.ledger.entry import CHAMPION, LIST, START, Entry, Kind, read
from model.errors import BiovlmError, MissingInputError, RefusedError

GAP_HINT = "the ledger may only grow: bring the file back from a backup or from the bucket's older versions"


def breaks(contents: Mapping[int, bytes], proved: Sequence[Entry] = ()) -> Iterator[tuple[int, BiovlmError]]:
    """(number, letter) of each place where the chain is broken, in order.

    Args:
        contents: Number -> bytes of the entry's file.
        proved: The first entries, if they are known to be whole.
    """
    before = proved[-1].digest if proved else START
    for number in range(len(proved) + 1, max(contents, default=0) + 1):
        found = _break(contents, number, before)
        if isinstance(found, Entry):
            before = found.digest
            continue
        yield number, found
        # Whatever follows can only be compared with what is there and can be read.
        before = _digest(contents.get(number, b""), number)


def whole(contents: Mapping[int, bytes], proved: Sequence[Entry] = ()) -> tuple[Entry, ...]:
    """The entries in order. Arguments as `breaks`.

    Raises:
        RefusedError: One was changed, or follows another history. MissingInputError: One is missing.
    """
    for _, letter in breaks(contents, proved):
        raise letter
    return (*proved, *(read(contents[number], number) for number in sorted(contents)[len(proved) :]))


def _break(contents: Mapping[int, bytes], number: int, before: str) -> Entry | BiovlmError:
    """The entry of `number`, or what is wrong with it after the one with digest `before`; empty if nobody knows that one."""
    if number not in contents:
        later = len([other for other in contents if other > number])
        return MissingInputError(f"entry {number} of the ledger is missing, and {later} follow it", GAP_HINT)
    try:
        entry = read(contents[number], number)
    except RefusedError as error:
        return error
    if before and entry.previous != before:
        return RefusedError(
            f"the ledger forks at entry {number}: it follows {entry.previous[:12]}, and entry {number - 1} is {before[:12]}",
            "one of the two was replaced; bring both back from a backup or from the bucket's older versions",
        )
    return entry


def _digest(content: bytes, number: int) -> str:
    """Digest of an entry that can be read; empty for another."""
    try:
        return read(content, number).digest
    except RefusedError:
        return ""


def anchor_of(entries: Sequence[Entry]) -> str:
    """What the registry is to remember of a ledger: number and digest of its last entry."""
    return f"{entries[-1].number} {entries[-1].digest}" if entries else ""


def against(entries: Sequence[Entry], anchor: str) -> None:
    """Compare with what the registry remembers, which may be behind, and never ahead.

    Raises:
        MissingInputError: Entries that were there are gone. RefusedError: There is another history now, or the memory is none.
    """
    if not anchor:
        return
    number, _, digest = anchor.partition(" ")
    if not number.isdecimal() or len(digest) != len(START):
        raise RefusedError("the registry's memory of the ledger (tag biovlm.ledger) was changed", "remove it, and reconcile")
    if int(number) > len(entries):
        raise MissingInputError(f"the ledger ends at entry {len(entries)}, and the registry remembers entry {number}", GAP_HINT)
    if entries[int(number) - 1].digest != digest:
        raise RefusedError(
            f"the ledger forks: its entry {number} is {entries[int(number) - 1].digest[:12]}, the registry remembers {digest[:12]}",
            "it was written anew; bring it back from a backup or from the bucket's older versions",
        )


def passing(entries: Sequence[Entry], version: str) -> Entry | None:
    """The newest entry that says what a version passed the gate with; None for one that was champion before the ledger began."""
    kinds = (Kind.PROMOTION, Kind.NOMINATION)
    return next((one for one in reversed(entries) if one.kind in kinds and one.version == version), None)


@dataclass(frozen=True)
class State:
    """Where a model stands after some entries."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    reigns: tuple[str, ...] = ()
    """Versions in the order in which they became champion."""
    since: int = 0
    """Number of the entry that made the present champion; 0 without one. It tells one reign of a version from another."""
    moved: float = 0.0
    """When an alias was last moved, in seconds since 1970."""
    nominated: Mapping[str, Entry] = field(default_factory=dict)
    """Version -> its newest nomination."""
    approvals: tuple[Entry, ...] = ()
    withdrawals: Mapping[str, Mapping[str, Entry]] = field(default_factory=dict)
    """Version -> digest of a withdrawal list -> the entry, of those that were not taken back."""
    rolled_back: Mapping[str, int] = field(default_factory=dict)
    """Version -> number of the entry that took the championship from it by a rollback."""

    @property
    def champion(self) -> str:
        """Version of the champion; empty without one."""
        return self.aliases.get(CHAMPION, "")

    @property
    def withdrawn(self) -> dict[str, str]:
        """Version -> why it may not be promoted."""
        return {version: "; ".join(entry.reason for entry in held.values()) for version, held in self.withdrawals.items()}

    def former(self, *but: str) -> str:
        """The newest earlier champion that may become champion again, other than those of `but`; empty without one."""
        barred = {*but, *self.withdrawn, *self.rolled_back}
        return next((version for version in reversed(self.reigns) if version not in barred), "")


def state(entries: Sequence[Entry]) -> State:
    """The projection of `entries`."""
    aliases: dict[str, str] = {}
    reigns: list[str] = []
    since, moved = 0, 0.0
    rolled_back: dict[str, int] = {}
    for entry in entries:
        if entry.kind is Kind.ROLLBACK and CHAMPION in aliases:
            rolled_back[aliases[CHAMPION]] = entry.number
        if entry.moves.get(CHAMPION):
            reigns.append(entry.moves[CHAMPION])
            since = entry.number
            rolled_back.pop(entry.moves[CHAMPION], None)
        if entry.moves:
            aliases = {alias: version for alias, version in {**aliases, **entry.moves}.items() if version}
            moved = entry.seconds
    return State(
        aliases=aliases,
        reigns=tuple(reigns),
        since=since,
        moved=moved,
        nominated={entry.version: entry for entry in entries if entry.kind is Kind.NOMINATION},
        approvals=tuple(entry for entry in entries if entry.kind is Kind.APPROVAL),
        withdrawals=_withdrawals(entries),
        rolled_back=rolled_back,
    )


def _withdrawals(entries: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    found: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        held, of = found.setdefault(entry.version, {}), entry.evidence.get(LIST, "")
        if entry.kind is Kind.WITHDRAWAL:
            held[of] = entry
        elif entry.kind is Kind.REINSTATEMENT:
            held.pop(of, None)
    return {version: held for version, held in found.items() if held}

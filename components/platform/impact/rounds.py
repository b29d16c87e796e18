"""Which withdrawals hold. A list may be withdrawn, taken back because it was a mistake, and withdrawn again: each time is a round.

1. A withdrawal is named LIST-ROUND: SHA-256 of the list, and how often the list was taken back before, plus one.
2. `take_back` leaves an artifact of that name in the store, `withdrawals-undone/LIST-ROUND`. Nothing that a withdrawal left is removed: who
   asks for it asks here whether it holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from components.platform.store import Store
from model import manifest

FOLDER = "withdrawals-undone"
KIND = "withdrawal"


def present(store: Store, list_digest: str) -> str:
    """The name of a withdrawal of this list now, LIST-ROUND."""
    taken_back = sum(list_of(name) == list_digest for name in store.names(FOLDER))
    return f"{list_digest}-{taken_back + 1}"


def list_of(name: str) -> str:
    """The list of a withdrawal."""
    return name.rpartition("-")[0]


def holding(store: Store, names: Iterable[str]) -> list[str]:
    """Those withdrawals that were not taken back, sorted."""
    asked = set(names)
    return sorted(asked - set(store.names(FOLDER))) if asked else []


def take_back(store: Store, name: str, by: str, reason: str) -> None:
    """Say that a withdrawal was a mistake; a second time changes nothing. CannotWriteError: The store does not take it."""
    if name in store.names(FOLDER):
        return
    facts = {"withdrawal": name, "by": by, "reason": reason, "time": time.time()}
    with manifest.commit(store.root / FOLDER / name, KIND, facts=facts) as folder:
        (folder / "reason.txt").write_text(f"{by}: {reason}\n", encoding="utf-8")
    store.publish(f"{FOLDER}/{name}")

"""The things of all withdrawal lists, for those who take in new data: what was withdrawn once must not come back with the next import.

1. `keep(store, items, digest)` leaves a list in the store, `withdrawn-lists/WITHDRAWAL`: hashes of records, patients and images, no ids.
   They stand beside the data itself, under the same protection; the hash keeps names out of what people open.
2. `known(store)` names all that were not taken back (`rounds`), `Lists.of(store)` reads them.
3. `Lists.refuse(name, dataset)` looks at every record of a data set; the data step asks it whenever a list is new to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from components.platform.impact import rounds
from components.platform.impact.question import Item, Subject
from components.platform.store import Store
from model import manifest
from model.data.dataset import DataSet
from model.errors import RefusedError

FOLDER = "withdrawn-lists"
KIND = "withdrawal"
FILE = "hashes.json"
SHOWN = 12
"""Hex digits of a digest that a reader sees."""


def keep(store: Store, items: Iterable[Item], list_digest: str) -> None:
    """Leave a list for all who share the store; one that is there stays as it is."""
    name = rounds.present(store, list_digest)
    uri = f"{FOLDER}/{name}"
    if name in known(store):
        return
    by_subject: dict[str, list[str]] = {str(subject): [] for subject in (Subject.RECORD, Subject.PATIENT, Subject.IMAGE)}
    for item in items:
        if item.subject in by_subject:
            by_subject[item.subject].append(_hashed(item.subject, item.value))
    content = {subject: sorted(hashes) for subject, hashes in by_subject.items()}
    with manifest.commit(store.root / uri, KIND, facts={"list": list_digest}) as folder:
        (folder / FILE).write_text(json.dumps(content), encoding="utf-8")
    store.publish(uri)


def known(store: Store) -> list[str]:
    """Names of all withdrawals that hold, LIST-ROUND, sorted."""
    return rounds.holding(store, store.names(FOLDER))


@dataclass(frozen=True)
class Lists:
    """All lists together."""

    hashes: frozenset[tuple[str, str]]
    """(Subject, hash)."""

    @classmethod
    def of(cls, store: Store) -> Lists:
        """Read and verify them. RefusedError: one was changed."""
        found: set[tuple[str, str]] = set()
        for name in known(store):
            content = json.loads((store.fetch(f"{FOLDER}/{name}") / FILE).read_bytes())
            found |= {(subject, value) for subject, values in content.items() for value in values}
        return cls(frozenset(found))

    def refuse(self, name: str, dataset: DataSet) -> None:
        """RefusedError if the set holds a record, patient or image that was withdrawn; the letter counts them."""
        if not self.hashes:
            return
        files = {entry.path: entry.sha256 for entry in dataset.manifest.files}
        held = 0
        for split in dataset.splits:
            for record in dataset.stream(split):
                asked = [
                    (Subject.RECORD, record.id),
                    (Subject.RECORD, f"{name}/{record.id}"),
                    (Subject.PATIENT, record.group),
                    *((Subject.IMAGE, files[image]) for image in record.images),
                ]
                held += any((str(subject), _hashed(subject, value)) in self.hashes for subject, value in asked)
        if held:
            raise RefusedError(
                f"the data set {name} ({dataset.manifest.digest[:SHOWN]}) holds {held:,} records that were withdrawn",
                "import it again without them",
            )


def _hashed(subject: Subject, value: str) -> str:
    return hashlib.blake2b(f"{subject} {value}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

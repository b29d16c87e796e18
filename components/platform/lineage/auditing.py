"""What an auditor asks of a version in the registry: show its lineage, and prove it.

1. `read(settings, version)` is the whole graph, with what came after registration.
2. `verify(settings, version)` hashes everything again (`proof`), and compares what MLflow holds (`tracked`).

A version that biovlm did not register has no lineage: a letter (exit 66), and nothing is looked at.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from components.platform import champion
from components.platform.lineage import proof, tracked, version
from components.platform.lineage.graph import Document
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from components.platform.tracking import Tracking
from components.platform.versions import Version
from model.errors import BiovlmError


def read(settings: Settings, found: Version) -> Document:
    """The whole lineage of a version.

    Raises:
        MissingInputError: It has none: a foreign model, or the store was emptied.
        DataError, RefusedError: What is there is no lineage, or was changed.
    """
    store, receipt = open_store(settings), found.tag(champion.RECEIPT_KEY)
    return version.whole(store, version.read(store, receipt), receipt)


def verify(settings: Settings, found: Version) -> proof.Proof:
    """Look at everything that a version was made from. MissingInputError: it has no lineage at all."""
    receipt, result = found.tag(champion.RECEIPT_KEY), proof.Proof()
    with tempfile.TemporaryDirectory(prefix="biovlm-") as empty:
        store = _afresh(settings, Path(empty))
        stored = proof.prove(store, receipt, result)
        if stored is not None:
            _registry(settings, found, stored, result)
    return result


def _registry(settings: Settings, found: Version, stored: Document, result: proof.Proof) -> None:
    """What the registry says of the version, against its document."""
    name = f"{found.name}/{found.version}"
    if stored.about != f"version:{name}":
        result.note(f"tag {champion.RECEIPT_KEY}", [f"it leads to the receipt of {stored.about}, this is {name}"])
        return
    try:
        wrong = list(tracked.differing(Tracking(settings), found.name, found.version, found.tags, stored))
    except BiovlmError as error:
        wrong = [("tracking store", error.message)]
    for place, problem in wrong:
        result.note(place, [problem])
    if not wrong:
        result.note(f"MLflow's tags and artifact of {name}", [])


def _afresh(settings: Settings, empty: Path) -> Store:
    """The store without what this machine has of it already: a cache proves nothing about a bucket."""
    store = open_store(settings)
    if type(store) is not Store:
        store.root = empty
    return store

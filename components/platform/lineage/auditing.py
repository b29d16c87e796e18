"""What an auditor asks of a version in the registry: show its lineage, and prove it.

1. `read(settings, version)` is the whole graph, with what came after registration.
2. `verify(settings, version)` hashes everything again (`proof`), verifies the signatures, compares what MLflow
   holds (`tracked`), and walks the ledger of the model.

A version that biovlm did not register has no lineage: a letter (exit 66), and nothing is looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.platform import champion, signing
from components.platform.ledger import chain, registry
from components.platform.ledger.ledger import Ledger
from components.platform.lineage import proof, tracked, version
from components.platform.lineage.graph import Document
from components.platform.lineage.version import moved
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from components.platform.tracking import Tracking
from components.platform.versions import Version
from model.errors import BiovlmError

if TYPE_CHECKING:
    from model.evaluation.results import Report

SIGNED = ("served as", "judged by")
"""Roles of a version's edges to what is signed, beside its receipt."""


def read(settings: Settings, found: Version) -> Document:
    """The whole lineage of a version.

    Raises:
        MissingInputError: It has none: a foreign model, or the store was emptied.
        DataError, RefusedError: What is there is no lineage, or was changed.
    """
    store, receipt = open_store(settings), found.tag(champion.RECEIPT_KEY)
    entries = _ledger(settings, found)
    return moved(version.whole(store, version.read(store, receipt), receipt), entries.entries() if entries else (), found.version)


def verify(settings: Settings, found: Version) -> proof.Proof:
    """Look at everything that a version was made from. MissingInputError: it has no lineage at all."""
    receipt, result = found.tag(champion.RECEIPT_KEY), proof.Proof()
    with tempfile.TemporaryDirectory(prefix="biovlm-") as empty:
        store = _afresh(settings, Path(empty))
        stored = proof.prove(store, receipt, result)
        if stored is not None:
            _signatures(settings, store, stored, f"steps/register/{receipt}", result)
            facts = store.manifest_of(f"steps/register/{receipt}").facts
            _registry(settings, found, stored, facts, result)
            _chain(settings, found, result)
    return result


def report_of(settings: Settings, document: Document) -> Report:
    """The evaluation that a version was registered with. Errors as `Store.fetch`, `model.evaluation.results.read_report`."""
    from model.evaluation.results import read_report  # numpy

    edge = next(edge for edge in document.out_of(document.about) if edge.role == "judged by")
    return read_report(open_store(settings).fetch(str(edge.facts["uri"]), edge.target.partition(":")[2]))


def _signatures(settings: Settings, store: Store, stored: Document, receipt: str, result: proof.Proof) -> None:
    """The signatures of what is served, of the report and of the receipt, which holds the lineage. What was made while signing was off
    is told by its lineage, and is refused where signing is on."""
    signed = {str(edge.facts["uri"]): edge.target for edge in stored.out_of(stored.about) if edge.role in SIGNED}
    for uri, target in {**signed, receipt: ""}.items():
        digest = target.partition(":")[2]
        try:
            digest = digest or store.manifest_of(uri).digest
            signing.verify(store, settings, uri, digest)
            problems = []
        except BiovlmError as error:
            problems = [error.message]
        result.note(f"signature of {uri}, {signing.uri_of(digest)}", problems)


def _registry(settings: Settings, found: Version, stored: Document, facts: Mapping[str, Any], result: proof.Proof) -> None:
    """What MLflow holds of the version, against its document and the facts of its receipt."""
    name = f"{found.name}/{found.version}"
    if stored.about != f"version:{name}":
        result.note(f"tag {champion.RECEIPT_KEY}", [f"it leads to the receipt of {stored.about}, this is {name}"])
        return
    try:
        tracking = Tracking(settings)
        wrong = list(tracked.differing(tracking, found.name, found.version, found.tags, stored))
        wrong += tracked.served_otherwise(tracking, str(facts["model_id"]), facts.get("served", {}))
    except BiovlmError as error:
        wrong = [("tracking store", error.message)]
    for place, problem in wrong:
        result.note(place, [problem])
    if not wrong:
        result.note(f"what MLflow holds of {name}", [])


def _chain(settings: Settings, found: Version, result: proof.Proof) -> None:
    """The ledger of the model: every entry, the chain of their digests, its end as the registry remembers it, and the aliases."""
    name = f"ledger of {found.name}"
    facts, ledger = registry.registered(settings, found.name), _ledger(settings, found)
    if facts is None or ledger is None:
        result.note(name, ["the registry does not know this model"])
        return
    broken = ledger.verify()
    for number, letter in broken:
        result.note(f"{name}, entry {number}", [letter.message])
    if broken:
        return
    entries = ledger.entries()
    try:
        chain.against(entries, facts.tags.get(registry.ANCHOR, ""))
        result.note(name, [])
    except BiovlmError as error:
        result.note(name, [error.message])
    for one in registry.drifted(chain.state(entries), facts.aliases) if entries else ():
        words = f"it is at version {one.found or 'none'}, the ledger has it at {one.wanted or 'none'}"
        result.note(f"alias {one.alias} of {found.name}", [f"{words}; `biovlm registry reconcile {found.name}` puts it back"])


def _ledger(settings: Settings, found: Version) -> Ledger | None:
    facts = registry.registered(settings, found.name)
    return None if facts is None else registry.ledger_of(settings, found.name, facts)


def _afresh(settings: Settings, empty: Path) -> Store:
    """The store without what this machine has of it already: a cache proves nothing about a bucket."""
    store = open_store(settings)
    if type(store) is not Store:
        store.root = empty
    return store

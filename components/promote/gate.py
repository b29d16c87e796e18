"""The gate's edge: what it decides from is brought, and proved, before the pure decision sees it.

1. The signatures of both reports are verified, every byte, and only then are they read. Nothing is read from a tag or a metric of the
   tracking store, which anybody may edit.
2. The licences come from the lineage in the receipt (components/platform/lineage/licences.py), whose signature is verified, too.
3. The gate must be the one that the champion passed, as the ledger tells, or on the approved list (components/platform/approved.py).
4. `model.evaluation.decision` decides. If something makes the question itself wrong (a benchmark of another version, a licence that
   forbids the purpose, a gate that nobody approved), there is no decision but a refusal that names all of it (exit 77).
"""

from __future__ import annotations

from components.platform import approved, signing
from components.platform.lineage import licences, version
from components.platform.lineage.licences import Taint
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.store import Store
from model.config import Promotion, Purpose
from model.errors import RefusedError
from model.evaluation.decision import Decision, Evidence, Grounds, decide
from model.evaluation.results import read_items, read_report


def judge(
    store: Store,
    settings: Settings,
    promotion: Promotion,
    receipt: Reference,
    report: Reference,
    champion_report: Reference,
    champions_gate: str = "",
) -> Decision:
    """Decide about the version of a receipt.

    Args:
        store: Where the artifacts are.
        settings: Which keys are trusted, and where the approved list is.
        promotion: The gate.
        receipt: Of the version.
        report: Of the candidate.
        champion_report: Of the present champion; of kind `none` without one.
        champions_gate: Digest of the gate that the champion passed, from the ledger; empty if nobody knows.

    Raises:
        RefusedError: A signature does not hold, or nothing can be decided.
        MissingInputError, DataError: A report or the lineage is gone or damaged.
    """
    taint = taint_of(store, settings, receipt)
    decision = decide(
        promotion,
        evidence(store, settings, report),
        None if champion_report.is_none else evidence(store, settings, champion_report),
        Grounds(
            licences=taint.licences,
            forbidden=forbidden(taint, promotion.purpose),
            champions_gate=champions_gate,
            approved=approved.digests(settings),
        ),
    )
    if decision.refusals:
        raise RefusedError(
            "nothing was decided, and nothing changed: " + "; ".join(reason.message for reason in decision.refusals),
            "mend what is named and run the same command again: all other results are reused",
        )
    return decision


def evidence(store: Store, settings: Settings, report: Reference) -> Evidence:
    """Report and items of a signed artifact. Errors as `signing.verify` and `read_report`."""
    signing.verify(store, settings, store.uri(report.folder), report.digest)
    return Evidence(read_report(report.folder), read_items(report.folder))


def taint_of(store: Store, settings: Settings, receipt: Reference) -> Taint:
    """What the licences of all that the version was made from come to, from the signed receipt."""
    signing.verify(store, settings, store.uri(receipt.folder), receipt.digest)
    return licences.strictest(version.read(store, receipt.folder.name))


def forbidden(taint: Taint, purpose: Purpose) -> dict[str, str]:
    """Licence -> what it allows, of those that do not allow the purpose."""
    read = {licence: licences.terms(licence) for licence in taint.licences}
    return {licence: licences.WORDS[terms] for licence, terms in read.items() if terms > licences.ALLOWED[purpose]}

"""Promotion: decide, and let the ledger say what follows.

1. The decision is a pure function of the gate, the candidate's report and the champion's report on the same items; what it rests on is
   brought and proved by `components/promote/gate.py`.
2. What is to be promoted is proved first: signatures and licences (components/platform/ledger/proof.py).
3. The ledger (components/platform/ledger) takes the promotion, or the nomination where a person has to have a say, if the champion is
   still the one that preflight saw, in the same reign; else it is a refusal (exit 77), and the next run compares with the new one.
   The registry's aliases follow it. However often the step is tried, or by how many, there is one entry.
4. The decision is an artifact, and its outcome a tag of the version, for readers: nobody decides by a tag.

A decision that is not `promote` is a result like any other: the step succeeds. A decision that is found in the store is used again only
while the aliases are where the ledger has them; else the step runs, and puts them there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from components.platform import approved
from components.platform.champion import AGAINST
from components.platform.ledger import acts, proof, registry
from components.platform.ledger.registry import Book
from components.platform.ledger.rules import Candidate
from components.platform.reference import NONE, Reference
from components.platform.settings import Settings
from components.platform.step import Work, run_step
from components.platform.tracking import Tracking
from model import manifest
from model.config import PromoteSlice
from model.errors import RefusedError

KIND = "decision"


def run(piece: str, tracking: str, receipt: str, report: str, champion: str, champion_report: str, decision: str) -> None:
    """Decide or find the decision, and write its reference to the path `decision`."""
    given = {"receipt": receipt, "report": report, "champion": champion, "champion_report": champion_report}
    asked = json.loads(piece)
    in_place = partial(_in_place, str(asked["registered_model"]))
    run_step("promote", "promote", asked, given, decision, _produce, partial(identity, tracking), in_place)


def identity(tracking: str, given: Mapping[str, Reference]) -> dict[str, str]:
    """What belongs to the key. A champion that is its own candidate counts as compared with what it was compared with then."""
    against = given["champion_report"].digest or NONE
    if given["champion"].digest == given["receipt"].facts["checkpoint"]:
        against = str(given["champion"].facts["against"])
    found = {"receipt": given["receipt"].digest, "report": given["report"].digest}
    return found | {"champion_report": against, "tracking": tracking}


def _in_place(name: str, stored: manifest.Manifest) -> bool:
    """Whether the registry's aliases are where the ledger has them, asked without MLflow where that can be."""
    settings = Settings.from_environment()
    facts, standing = registry.registered(settings, name), registry.standing(settings, name)
    return facts is not None and standing is not None and not registry.drifted(standing.state, facts.aliases)


def _produce(work: Work) -> None:
    from components.promote.gate import judge  # numpy
    from model.evaluation.decision import Verdict

    wanted, given = PromoteSlice.model_validate(work.piece), work.inputs
    gate = approved.champions_gate(Book(work.settings, wanted.registered_model).entries(), given["champion"])
    refs = (given["receipt"], given["report"], given["champion_report"])
    decision = judge(work.store, work.settings, wanted.promotion, *refs, gate)
    found = {"verdict": str(decision.verdict), "reasons": [asdict(reason) for reason in decision.reasons]}
    evidence = _evidence(work, wanted.promotion.model_dump(mode="json"), found)
    entry = _act(work, wanted, evidence, decision.verdict is Verdict.PROMOTE)
    _tag(work, wanted.registered_model, str(decision.verdict), [reason.check for reason in decision.failed])
    version = str(given["receipt"].facts["version"])
    facts: dict[str, Any] = {
        **found,
        "version": version,
        "champion_before": str(given["champion"].facts.get("version", "")) or NONE,
        "entry": entry,
        "evidence": evidence,
        "figures": {"decision": str(decision.verdict), "version": version},
    }
    with manifest.commit(work.final, KIND, work.parents, facts) as folder:
        (folder / "decision.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _evidence(work: Work, gate: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    """What the ledger keeps of the decision: name -> digest."""
    given = work.inputs
    evidence = {role: given[role].digest for role in ("receipt", "report", "champion_report") if given[role].digest}
    evidence["checkpoint"] = str(given["receipt"].facts["checkpoint"])
    return evidence | {"gate": manifest.digest_of(gate), "decision": manifest.digest_of(found)}


def _act(work: Work, wanted: PromoteSlice, evidence: dict[str, str], promote: bool) -> str:
    """Reconcile, and promote or nominate if the gate passed it; number and digest of the entry, `none` without one.

    Raises:
        RefusedError: A signature does not hold, another champion reigns by now, the version is withdrawn, or this attempt is stale.
    """
    settings, name, given = work.settings, wanted.registered_model, work.inputs
    book, by = Book(settings, name), settings.actor or f"run {settings.run_id}"
    if not promote:
        done = acts.reconcile(book, by)
        _refuse_other_reign(book, given["champion"])
    else:
        claim = book.ledger.claim(manifest.digest_of([settings.run_id, work.key]))
        evidence |= _proved(book, work)
        candidate = Candidate(
            version=str(given["receipt"].facts["version"]),
            against=str(given["champion"].facts.get("version", "")),
            since=int(given["champion"].facts.get("since", 0)),
            evidence=evidence,
            approvals=wanted.promotion.approvals,
            approval_hours=wanted.promotion.approval_hours,
        )
        done = acts.offer(book, candidate, by, work.key, claim)
    for one in done.drift:
        work.note(f"the registry did not agree with the ledger: {one}")
    if done.delivery.waiting:
        work.note(f"{done.delivery.waiting} notices wait for the webhook; `biovlm registry reconcile` tries again")
    return f"{done.entry.number} {done.entry.digest}" if done.entry else NONE


def _proved(book: Book, work: Work) -> dict[str, str]:
    """Verify the signatures of report and export, and that every source has a licence; name -> digest."""
    given = work.inputs
    receipt, facts = given["receipt"].folder.name, given["receipt"].facts
    found = proof.signatures(book, work.store, receipt, str(facts["export"]), str(facts["checkpoint"]))
    if found["report"] != given["report"].digest:
        raise RefusedError(
            f"the receipt is about the report {found['report'][:12]}, and {given['report'].digest[:12]} was given",
            "run the command again",
        )
    return found | {"licences": manifest.digest_of(proof.licences(work.store, receipt))}


def _refuse_other_reign(book: Book, champion: Reference) -> None:
    """RefusedError if the candidate was measured with a champion that reigns no more: the decision would be about the past."""
    now = acts.state(book.entries())
    before = str(champion.facts.get("version", ""))
    if now.champion != before:
        raise RefusedError(
            f"the champion of {book.name} was version {before or NONE} when this run began, and is version {now.champion or NONE} now",
            "run the same command again: it compares with the new champion, and reuses everything else",
        )


def _tag(work: Work, name: str, verdict: str, failed: list[str]) -> None:
    """Tell readers of the registry."""
    given, tracking = work.inputs, Tracking(work.settings)
    version, champion = str(given["receipt"].facts["version"]), str(given["champion"].facts.get("version", ""))
    tags = {"biovlm.decision": verdict, "biovlm.failed": ", ".join(failed)}
    if champion != version:
        tags[AGAINST] = given["champion_report"].digest or NONE
    for key, value in tags.items():
        tracking.client.set_model_version_tag(name, version, key, value)

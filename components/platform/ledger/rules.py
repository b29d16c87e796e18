"""What may be written into the ledger: pure, from what stands there to the act, or to the letter that refuses it.

1. A version that passed the gate is promoted, unless a person has to have a say: because the recipe asks for approvals, or because a
   person took the championship from this version before. Then it is nominated, and becomes the challenger.
2. A nominated version is promoted when enough persons approved it, and while the champion it was measured with reigns.
3. A rollback goes to a version that was champion before, for a reason.
4. A withdrawn version is never promoted again, and never the goal of a rollback, unless all its withdrawals were taken back.

`previous` is where a rollback would go: the newest earlier champion that was neither withdrawn nor rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from components.platform.ledger import approvals
from components.platform.ledger.approvals import Person
from components.platform.ledger.chain import State
from components.platform.ledger.entry import CHALLENGER, CHAMPION, LIST, PREVIOUS, Entry, Kind, iso
from components.platform.ledger.ledger import Draft
from model.errors import RefusedError


@dataclass(frozen=True)
class Candidate:
    """A version that passed the gate."""

    version: str
    against: str
    """Version of the champion that it was measured with; empty if there was none."""
    since: int
    """Number of the entry that had made that champion."""
    evidence: Mapping[str, str]
    approvals: int = 0
    approval_hours: int = 0


def candidate(state: State, found: Candidate, by: str) -> Draft | None:
    """Promote or nominate a version that passed the gate.

    Raises:
        RefusedError: It is withdrawn, or another champion reigns than the one it was measured with.
    """
    refuse_withdrawn(state, found.version)
    if state.champion == found.version:
        return None
    _same_reign(state, found.against, found.since)
    evidence, fell = dict(found.evidence), state.rolled_back.get(found.version)
    if not found.approvals and fell is None:
        moves = _crowned(state, found.version)
        return Draft(Kind.PROMOTION, found.version, by, moves, "the gate passed it", evidence)
    reason = "the gate passed it; the recipe asks for approvals"
    if fell is not None:
        reason = f"the gate passed it; it was rolled back by entry {fell}, so a person must promote it"
    terms = {"approvals": found.approvals, "approval_hours": found.approval_hours, "since": found.since}
    return Draft(Kind.NOMINATION, found.version, by, {CHALLENGER: found.version}, reason, evidence, terms)


def approval(state: State, version: str, by: Person, sign: Callable[[bytes], str], model: str, now: float) -> Draft | None:
    """Approve a nomination, by signature; None if this person did, and it still holds.

    Raises:
        RefusedError: It is one's own nomination, the version is withdrawn or not nominated, or nobody knows who acts.
    """
    nomination = nominated(state, version)
    refuse_withdrawn(state, version)
    if not by.proven:
        raise RefusedError("nobody knows who approves", "set BIOVLM_ACTOR_KEY to the file of your own key")
    if by.name == nomination.by:
        raise RefusedError(
            f"{by.name} nominated version {version} and cannot approve it", "ask another person whose key is in BIOVLM_APPROVERS"
        )
    own = approvals_of(state, nomination, by.name)
    if len(own) > len(expired_of(own, nomination, now)):
        return None
    when = iso(now)
    signature = sign(approvals.statement(model, version, nomination.digest, by.name, when))
    evidence = {"nomination": nomination.digest}
    return Draft(Kind.APPROVAL, version, by.name, {}, "", evidence, signature=signature, time=when)


def promotion(state: State, version: str, by: Person, now: float, keys: Mapping[str, bytes]) -> Draft | None:
    """Promote a nominated version.

    Raises:
        RefusedError: Not nominated, withdrawn, too few approvals that count, or another champion reigns since.
    """
    refuse_withdrawn(state, version)
    if state.champion == version:
        return None
    nomination = nominated(state, version)
    if state.since != nomination.terms.get("since", 0):
        raise RefusedError(
            f"version {version} was measured with the champion of entry {nomination.terms.get('since', 0)}; "
            f"the champion is version {state.champion or 'none'} of entry {state.since} now",
            "run the recipe again: it compares with the new champion, and reuses everything else",
        )
    if nomination.terms.get("approvals") and not by.proven:
        raise RefusedError("nobody knows who promotes", "set BIOVLM_ACTOR_KEY to the file of your own key")
    counted = approvals.enough(state, nomination, by.name, now, keys)
    evidence = dict(nomination.evidence) | {"nomination": nomination.digest}
    evidence |= {f"approval by {one.by}": one.digest for one in counted}
    return Draft(Kind.PROMOTION, version, by.name, _crowned(state, version), f"nominated by {nomination.by}", evidence)


def rollback(state: State, version: str, by: str, reason: str, evidence: Mapping[str, str]) -> Draft | None:
    """Make an earlier champion champion again; None if it is.

    Raises:
        RefusedError: It never was champion, or is withdrawn.
    """
    refuse_withdrawn(state, version)
    if state.champion == version:
        return None
    if version not in state.reigns:
        known = ", ".join(dict.fromkeys(state.reigns)) or "none"
        raise RefusedError(
            f"version {version} was never champion", f"a rollback goes to one that was: {known}; others come by the gate"
        )
    moves = {CHAMPION: version, PREVIOUS: state.former(version, state.champion)}
    return Draft(Kind.ROLLBACK, version, by, _changes(state, moves), reason, dict(evidence))


def withdrawal(state: State, version: str, by: str, reason: str, evidence: Mapping[str, str]) -> Draft | None:
    """Say that a version may not be promoted any more; None if it was said of the same list. A champion stays so until a rollback."""
    if evidence.get(LIST, "") in state.withdrawals.get(version, {}):
        return None
    moves = {CHALLENGER: ""} if state.aliases.get(CHALLENGER) == version else {}
    if state.aliases.get(PREVIOUS) == version:
        moves[PREVIOUS] = state.former(version, state.champion)
    return Draft(Kind.WITHDRAWAL, version, by, moves, reason, dict(evidence))


def reinstatement(state: State, version: str, by: str, reason: str, evidence: Mapping[str, str]) -> Draft | None:
    """Take back the withdrawal of one list; None if it does not hold. It promotes nothing; `previous` may be this version again."""
    held, of = state.withdrawals.get(version, {}), evidence.get(LIST, "")
    if of not in held:
        return None
    others = {name: entry for name, entry in held.items() if name != of}
    after = {name: kept for name, kept in {**state.withdrawals, version: others}.items() if kept}
    former = replace(state, withdrawals=after).former(state.champion)
    moves = _changes(state, {PREVIOUS: former}) if state.champion else {}
    return Draft(Kind.REINSTATEMENT, version, by, moves, reason, {**evidence, "withdrawal": held[of].digest})


def refuse_withdrawn(state: State, version: str) -> None:
    """RefusedError if the version was withdrawn."""
    if version in state.withdrawn:
        raise RefusedError(
            f"version {version} is withdrawn: {state.withdrawn[version]}", "promote or roll back to another version"
        )


def nominated(state: State, version: str) -> Entry:
    """The newest nomination of a version. RefusedError without one."""
    if version not in state.nominated:
        raise RefusedError(
            f"version {version} is not nominated", "only what passed the gate can be promoted: run the recipe, or roll back"
        )
    return state.nominated[version]


def approvals_of(state: State, nomination: Entry, by: str) -> list[Entry]:
    """What a person has approved of a nomination, expired or not."""
    return [one for one in state.approvals if one.by == by and one.evidence.get("nomination") == nomination.digest]


def expired_of(given: Sequence[Entry], nomination: Entry, now: float) -> list[Entry]:
    """Those approvals that do not hold any more."""
    return [one for one in given if approvals.expired(one, nomination, now)]


def _same_reign(state: State, against: str, since: int) -> None:
    if (state.champion, state.since) == (against, since):
        return
    again = " again" if state.champion == against else ""
    raise RefusedError(
        f"the champion was version {against or 'none'} when this run began, and is version {state.champion or 'none'}{again} now",
        "run the same command again: it compares with the present champion, and reuses everything else",
    )


def _crowned(state: State, version: str) -> dict[str, str]:
    """The moves that make a version champion."""
    before = state.champion
    moves = {CHAMPION: version, PREVIOUS: state.former(version) if before else ""}
    if state.aliases.get(CHALLENGER) == version:
        moves[CHALLENGER] = ""
    return _changes(state, moves)


def _changes(state: State, moves: Mapping[str, str]) -> dict[str, str]:
    """Without those that change nothing."""
    return {alias: version for alias, version in moves.items() if state.aliases.get(alias, "") != version}

"""Which gate a model may be judged by: the one that its champion passed, or one on the approved list. Pure, and without numpy.

Preflight asks before anything costs hours, and the decision (model/evaluation/decision.py) asks again: the list, or the champion, may
have changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from model.config import Promotion
from model.manifest import digest_of


class Finding(NamedTuple):
    """Whether a gate may be used, and why, in words."""

    allowed: bool
    message: str


def gate_digest(promotion: Promotion) -> str:
    """The name of a gate: SHA-256 of all its settings, 64 hex digits."""
    return digest_of(promotion.model_dump(mode="json"))


def usable(promotion: Promotion, has_champion: bool, champions_gate: str, approved: Set[str]) -> Finding:
    """Whether a gate may decide.

    Args:
        promotion: The gate.
        has_champion: Whether there is one to compare with.
        champions_gate: `gate_digest` of the gate that made the champion; empty if nobody knows.
        approved: `gate_digest`s on the approved list.
    """
    own = gate_digest(promotion)
    if own in approved:
        return Finding(True, f"the gate {own[:12]} is on the approved list")
    if not has_champion:
        return Finding(True, f"the gate {own[:12]} is the first of this model")
    if own == champions_gate:
        return Finding(True, f"the gate {own[:12]} is the one that the champion passed")
    before = champions_gate[:12] or "unknown"
    return Finding(False, f"the gate is {own[:12]}, the champion passed {before}, and the approved list does not name it: {own}")

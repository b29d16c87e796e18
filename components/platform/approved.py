"""The approved list: gates that may be used although the champion passed another one.

1. The list is `approved_gates.yaml` beside this file, so that a change of it is a change of the code under review; BIOVLM_APPROVED_GATES
   names another file, for instance one that only an administrator may write.
2. `digests(settings, today)` gives the gates on it whose approval has not ended. A list that cannot be read approves nothing: it is an
   error (exit 78).
3. `refuse_gate` says, before a run costs anything, what the decision would say after all of it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from components.platform.ledger import registry
from components.platform.ledger.chain import passing
from components.platform.ledger.entry import Entry
from components.platform.reference import Reference
from components.platform.settings import Settings
from model.config import Promotion, Strict
from model.errors import ConfigError, RefusedError
from model.evaluation.gates import usable

FILE = Path(__file__).with_name("approved_gates.yaml")


class Approval(Strict):
    """One line of the list."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the gate: SHA-256 of all its settings."""
    by: Annotated[str, Field(min_length=1)]
    since: datetime.date
    """First day."""
    until: datetime.date | None = None
    """Last day; empty for no end."""
    reason: Annotated[str, Field(min_length=1)]


class Approvals(Strict):
    """The whole list."""

    gates: tuple[Approval, ...] = ()


def digests(settings: Settings, today: datetime.date | None = None) -> frozenset[str]:
    """Digests of the approved gates.

    Args:
        settings: Where the list is.
        today: The day to judge approvals by; UTC's without one.

    Raises:
        ConfigError: The list is missing or not in order.
    """
    path, day = settings.approved_gates or FILE, today or datetime.datetime.now(datetime.UTC).date()
    try:
        found = Approvals.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the approved gates in {path}: {type(error).__name__}", "see approved_gates.yaml"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise ConfigError(f"{path}: {field}: {first['msg']}", "see the comment in approved_gates.yaml") from None
    return frozenset(one.digest for one in found.gates if one.since <= day and (one.until is None or day <= one.until))


def champions_gate(entries: Sequence[Entry], champion: Reference) -> str:
    """Digest of the gate that a champion passed, as the ledger's entries tell; empty if there is no champion, or nobody knows."""
    told = passing(entries, str(champion.facts.get("version", "")))
    return told.evidence.get("gate", "") if told else ""


def refuse_gate(settings: Settings, name: str, promotion: Promotion, champion: Reference) -> None:
    """Ask of a recipe's gate whether it may be used against the present champion.

    Args:
        settings: Where ledger and list are.
        name: The registered model.
        promotion: The gate.
        champion: Of the model, of kind `none` without one.

    Raises:
        RefusedError: Another gate made the champion, and the list does not name this one. ConfigError: As `digests`.
    """
    known = registry.standing(settings, name)
    gate = champions_gate(known.entries if known else (), champion)
    found = usable(promotion, not champion.is_none, gate, digests(settings))
    if not found.allowed:
        raise RefusedError(
            f"{found.message}; every candidate of this run would be refused",
            "put the limits back, or have somebody approve the gate (approved_gates.yaml, or the file BIOVLM_APPROVED_GATES)",
        )

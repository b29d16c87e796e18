"""One line of the ledger: an act on a registered model, bound to all acts before it.

An entry's file holds its digest and its fields as canonical JSON, so that a file has one right form, byte by byte. Each entry names the
digest of the one before: who changes an old one has to change all that follow, and the last digest stands in the registry besides
(components/platform/ledger/registry.py).
"""

from __future__ import annotations

import calendar
import json
import time
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import RefusedError
from model.manifest import canonical_json, digest_of

SCHEMA_VERSION = 1
START = "0" * 64
"""What the first entry names as the digest before it."""
HEX = r"^[0-9a-f]{64}$"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
"""What the ledger decides about in the registry. Other aliases are nobody's business here."""
LIST = "withdrawal_list"
"""Name, among the evidence of a withdrawal and of its reinstatement, of the digest of the list behind it."""
ISO = "%Y-%m-%dT%H:%M:%SZ"


class Kind(StrEnum):
    """What an entry tells."""

    NOMINATION = "nomination"
    """A version passed the gate and waits for approval, or for a person's word: it is the challenger."""
    APPROVAL = "approval"
    """A person approves a nomination, by signature. Moves nothing."""
    PROMOTION = "promotion"
    """A version becomes champion."""
    ROLLBACK = "rollback"
    """An earlier champion becomes champion again, for a reason."""
    WITHDRAWAL = "withdrawal"
    """A version may not be promoted any more."""
    REINSTATEMENT = "reinstatement"
    """A withdrawal was a mistake, and is taken back for a reason; what else was withdrawn stays so. Promotes nothing."""
    REPAIR = "repair"
    """The registry's aliases were not where the ledger has them, and were put back; or were there before the ledger began."""


class Entry(BaseModel):
    """An act."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION, description="Version of this layout.")
    number: int = Field(ge=1, description="Place in the ledger, from 1 without gaps.")
    previous: str = Field(pattern=HEX, description="Digest of the entry before; zeros for the first.")
    time: str = Field(description="When, ISO 8601 in UTC, to the second.")
    kind: Kind
    model: str = Field(description="Name of the registered model.")
    version: str = Field(description="Number of the version that the act is about.")
    moves: dict[str, str] = Field(default_factory=dict, description="Alias -> version it has from now on; empty takes it away.")
    by: str = Field(description="Who acts: a person, or `run RUN` of a pipeline.")
    reason: str = ""
    evidence: dict[str, str] = Field(default_factory=dict, description="What was looked at -> its digest.")
    terms: dict[str, int] = Field(
        default_factory=dict,
        description="Of a nomination: approvals it needs, hours they hold, and the entry that made the champion it was measured with.",
    )
    signature: str = Field(default="", description="Of an approval: Ed25519 over its statement, base64.")
    key: str = Field(pattern=HEX, description="Of the act: acts of one key are one act, however often they are tried.")
    attempt: int = Field(default=1, ge=1, description="Which attempt of its run wrote it.")

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON, 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def seconds(self) -> float:
        """When, in seconds since 1970."""
        return seconds_of(self.time)


def render(entry: Entry) -> bytes:
    """The one form of an entry's file."""
    return f"{canonical_json({'digest': entry.digest, 'entry': entry.model_dump(mode='json')})}\n".encode()


def read(content: bytes, number: int) -> Entry:
    """The entry in the file of `number`.

    Raises:
        RefusedError: The file is torn, changed, or another entry's.
    """
    hint = "nobody may change the ledger: bring the file back from a backup or from the bucket's older versions"
    try:
        found = json.loads(content)
        entry = Entry.model_validate(found["entry"])
        seconds_of(entry.time)
    except (ValueError, KeyError, TypeError, ValidationError):
        raise RefusedError(f"entry {number} of the ledger is torn or changed: it cannot be read", hint) from None
    if entry.number != number:
        raise RefusedError(f"the file of entry {number} of the ledger holds entry {entry.number}", hint)
    if render(entry) != content:
        raise RefusedError(f"entry {number} of the ledger was changed: its digest is not that of what it says", hint)
    return entry


def iso(seconds: float) -> str:
    """A time as entries hold it."""
    return time.strftime(ISO, time.gmtime(seconds))


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a time in an entry. ValueError if it is none."""
    return float(calendar.timegm(time.strptime(text, ISO)))

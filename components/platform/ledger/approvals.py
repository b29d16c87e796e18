"""Approvals: what a person signs, and whether enough persons did, in time. Keys are Ed25519, in PEM files.

1. Who may approve stands in the folder BIOVLM_APPROVERS: `NAME.pem` is the public key of NAME. Names are identities; whoever may write
   into that folder says who they are.
2. A person's own key is the file that BIOVLM_ACTOR_KEY names, readable by nobody else. Who acts is whoever's public key belongs to it;
   without a key it is the name of the login, and that is a claim, not a proof.
3. An approval signs the statement below: this version, as nominated by this entry, now. It holds for the hours that the nomination
   asks for, and for that nomination only.
4. `enough` counts: whole signatures of different persons, none of them who nominated or who promotes.

    openssl genpkey -algorithm ed25519 -out me.pem && openssl pkey -in me.pem -pubout -out NAME.pem
"""

from __future__ import annotations

import base64
import binascii
import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.platform.ledger.chain import State
from components.platform.ledger.entry import Entry, iso
from model.errors import ConfigError, MissingInputError, RefusedError
from model.manifest import canonical_json

PURPOSE = "biovlm approval of a promotion, version 1"
HOUR = 3600.0


@dataclass(frozen=True)
class Person:
    """Who acts."""

    name: str
    proven: bool
    """Whether a key says so."""


def statement(model: str, version: str, nomination: str, by: str, when: str) -> bytes:
    """What an approval signs: canonical JSON.

    Args:
        model: The registered model.
        version: Number of the version.
        nomination: Digest of the entry that nominates it.
        by: Who approves.
        when: Time of the approval, as in its entry.
    """
    said = {"purpose": PURPOSE, "model": model, "version": version, "nomination": nomination, "by": by, "time": when}
    return canonical_json(said).encode()


def actor(key: Path | None, approvers: Path | None, claimed: str = "") -> Person:
    """Who acts in this process: whose key it is, else who is claimed, else the login's name.

    Raises:
        RefusedError: The key may be read by others, or belongs to nobody in the folder. MissingInputError: There is no such key.
    """
    if key is None:
        return Person(claimed or getpass.getuser(), proven=False)
    public = _private(key).public_key().public_bytes_raw()
    for name, known in keys(approvers).items():
        if known == public:
            return Person(name, proven=True)
    raise RefusedError(f"the key {key.name} belongs to nobody in {approvers}", "ask for your public key to be put there")


def keys(approvers: Path | None) -> dict[str, bytes]:
    """Name -> raw public key of everybody in the folder.

    Raises:
        ConfigError, MissingInputError: There is no folder. RefusedError: A file in it is no Ed25519 public key.
    """
    return {path.stem: _public(path) for path in sorted(_folder(approvers).glob("*.pem"))}


def sign(key: Path, content: bytes) -> str:
    """Ed25519 signature of `content`, base64."""
    return base64.b64encode(_private(key).sign(content)).decode()


def enough(state: State, nomination: Entry, by: str, now: float, known: Mapping[str, bytes]) -> tuple[Entry, ...]:
    """The approvals that count for promoting a nominated version, at least as many as it needs.

    Args:
        state: Where the model stands.
        nomination: The entry.
        by: Who promotes.
        now: In seconds since 1970.
        known: Name -> public key of who may approve.

    Raises:
        RefusedError: They are too few, with what is wrong with each that does not count.
    """
    needed = nomination.terms.get("approvals", 0)
    if not needed:
        return ()
    counted: dict[str, Entry] = {}
    faults = []
    for approval in state.approvals:
        if approval.evidence.get("nomination") != nomination.digest:
            continue
        fault = _fault(approval, nomination, by, now, known)
        if fault:
            faults.append(f"{approval.by}'s {fault}")
        else:
            counted[approval.by] = approval
    if len(counted) < needed:
        why = f": {'; '.join(faults)}" if faults else ""
        raise RefusedError(
            f"version {nomination.version} needs {needed} approvals, and {len(counted)} count{why}",
            f"someone else than {nomination.by} and {by} approves: "
            f"`biovlm registry approve models:/{nomination.model}/{nomination.version}`",
        )
    return tuple(counted.values())


def expired(approval: Entry, nomination: Entry, now: float) -> bool:
    """Whether an approval is older than the nomination lets it be."""
    return now - approval.seconds > nomination.terms.get("approval_hours", 0) * HOUR


def _fault(approval: Entry, nomination: Entry, by: str, now: float, known: Mapping[str, bytes]) -> str:
    """Why an approval does not count; empty if it does."""
    if approval.by in (by, nomination.by):
        return "approval is one's own: who nominates or promotes cannot approve"
    if expired(approval, nomination, now):
        hours = nomination.terms.get("approval_hours", 0)
        return f"approval expired: it is of {approval.time}, holds {hours} h, and it is {iso(now)}"
    if approval.by not in known:
        return "key is not among the approvers any more"
    said = statement(approval.model, approval.version, nomination.digest, approval.by, approval.time)
    return "" if _verifies(known[approval.by], approval.signature, said) else "signature does not fit"


def _verifies(public: bytes, signature: str, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _folder(approvers: Path | None) -> Path:
    if approvers is None:
        raise ConfigError(
            "approvals are asked for, and BIOVLM_APPROVERS is not set", "name the folder that holds the approvers' public keys"
        )
    if not approvers.is_dir():
        raise MissingInputError(
            f"there is no folder {approvers}", "BIOVLM_APPROVERS names the folder of the approvers' public keys"
        )
    return approvers


def _private(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if path.stat().st_mode & 0o077:
            raise RefusedError(f"the key {path} may be read by others", f"chmod 600 {path}, or make a new one")
        found = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise MissingInputError(f"there is no key {path}", "BIOVLM_ACTOR_KEY names the file of your own key") from None
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise RefusedError(f"{path} is no Ed25519 key without a password", "`openssl genpkey -algorithm ed25519` makes one")
    return found


def _public(path: Path) -> bytes:
    """Raw bytes of the public key in a file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, Ed25519PublicKey):
        raise RefusedError(f"{path} is no Ed25519 public key", "put the right one there, or remove it")
    return found.public_bytes_raw()

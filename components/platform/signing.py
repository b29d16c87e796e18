"""Signatures of artifacts: what was evaluated and what was registered is what is promoted, rolled back to and loaded.

1. `ensure(store, settings, uri)` signs the artifact at `uri` with model-signing (an in-toto statement with the SHA-256 of every file,
   in a Sigstore bundle, by an ECDSA key). The signature is an artifact itself, at `signatures/<digest of the subject>`, so it
   travels with the store, and is made once.
2. `verify(store, settings, uri, digest)` refuses unless: every byte is what the manifest says; nothing lies in the folder that a
   signature would not see (model/folders.py); a trusted key signed exactly these files, the manifest included.
3. `check(store, settings, uri, digest)` is the same for an artifact whose bytes are on another machine: the statement is compared with
   the hashes of the manifest in the store.

The files are those of any model-signing signature: `model_signing verify key FOLDER --signature model.sig --public_key KEY` agrees.
What signs is the step, never a worker: no key lies where training runs. BIOVLM_SIGNING=off turns all of it off; a `Seal` then says
`off`, and registration writes that into the version's lineage. What was made unsigned is refused when signing is on again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.platform.settings import Settings
from components.platform.store import Store, open_store
from model import manifest
from model.errors import DataError, MissingInputError, RefusedError
from model.folders import refuse_disguised, refuse_hidden
from model.manifest import FILE_NAME, Manifest

KIND = "signature"
SIGNATURE = "model.sig"
OFF, KEY = "off", "ecdsa-key"
AGAIN = "it was changed or belongs to something else; run the recipe again, which makes and signs it anew"


class Seal(BaseModel):
    """What is known of an artifact's signature."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="`ecdsa-key`, or `off` where the settings turned signing off.")
    subject: str = Field(description="Digest of the artifact's manifest.")
    signature: str = Field(default="", description="Digest of the signature's own manifest.")
    key: str = Field(default="", description="Fingerprint of the key.")


def uri_of(digest: str) -> str:
    """Where the signature of the artifact of `digest` is in the store."""
    return f"signatures/{digest}"


def was_signed(settings: Settings, found: Manifest) -> bool:
    """Whether a stored result has the signature that its step gives it; a step that died before that runs again."""
    return is_there(open_store(settings), settings, found.digest)


def is_there(store: Store, settings: Settings, digest: str) -> bool:
    """Whether the artifact of `digest` has a signature, unread, or needs none."""
    if not settings.signing:
        return True
    try:
        return bool(store.manifest_of(uri_of(digest)))
    except (DataError, MissingInputError):
        return False


def ensure(store: Store, settings: Settings, uri: str, here: bool = True) -> Seal:
    """Sign the artifact at `uri`, or find the signature that it has.

    Args:
        store: Where artifact and signature are.
        settings: Which key signs, and whether at all.
        uri: Place of the artifact.
        here: Its bytes are on this machine, or may be brought; else the hashes of its manifest are signed.

    Raises:
        RefusedError: The artifact is not what its manifest says or holds what a signature does not see; the key is open to others;
            a signature is there that does not verify. MissingInputError, ConfigError: No artifact, no key.
    """
    # What was just made here is signed before others see it: one that is published is signed, or its maker died.
    folder = store.root / uri
    local = here and folder.exists()
    found = manifest.verify(folder) if local else store.manifest_of(uri)
    if not settings.signing:
        return Seal(method=OFF, subject=found.digest)
    hashes = _seen(folder if local else store.fetch(uri, found.digest), found) if here else _told(found)
    if not is_there(store, settings, found.digest):
        _sign(settings, found, hashes, store.root / uri_of(found.digest))
        store.publish(uri_of(found.digest))
    return _verified(store, settings, found, hashes)


def verify(store: Store, settings: Settings, uri: str, digest: str | None = None) -> Seal:
    """Every byte of the artifact at `uri` against its signature.

    Raises:
        RefusedError: Unsigned, signed by a key that is not trusted, or not what was signed.
        MissingInputError: The artifact is gone, or no key is trusted.
    """
    folder = store.fetch(uri, digest)
    found = manifest.read(folder)
    if not settings.signing:
        return Seal(method=OFF, subject=found.digest)
    return _verified(store, settings, found, _seen(folder, found))


def check(store: Store, settings: Settings, uri: str, digest: str) -> Seal:
    """The manifest of the artifact at `uri` against its signature, its bytes unseen. Errors as `verify`."""
    found = store.manifest_of(uri)
    if found.digest != digest or not store.holds(uri, digest):
        raise RefusedError(f"{uri} is {found.digest[:12]} or not whole, expected {digest[:12]}", AGAIN)
    if not settings.signing:
        return Seal(method=OFF, subject=digest)
    return _verified(store, settings, found, _told(found))


class _Known:
    """Files with their hashes, in the shape in which model-signing takes them, so that no byte is hashed twice."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes

    def hash(self, model_path: Path, files_to_hash: object = None) -> Any:
        """A manifest of model-signing."""
        from model_signing import manifest as stated
        from model_signing._hashing.hashing import Digest

        kind = stated.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
        items = [kind.new_item(name, Digest("sha256", bytes.fromhex(value))) for name, value in sorted(self._hashes.items())]
        return stated.Manifest(Path(model_path).name, items, kind)

    def add_ignored_paths(self, **_: object) -> None:
        """A statement that wants files to be left out covers less than the folder."""
        raise ValueError("the statement leaves files out")


def _seen(folder: Path, found: Manifest) -> dict[str, str]:
    """Path -> SHA-256 of every file of an artifact that was just verified byte by byte, the manifest included."""
    refuse_hidden(folder)
    refuse_disguised(folder)
    return _listed(found) | {FILE_NAME: manifest.sha256_file(folder / FILE_NAME)}


def _told(found: Manifest) -> dict[str, str]:
    """The same from the manifest alone."""
    return _listed(found) | {FILE_NAME: manifest.sha256_text(manifest.as_text(found))}


def _listed(found: Manifest) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in found.files}


def _sign(settings: Settings, found: Manifest, hashes: dict[str, str], final: Path) -> None:
    from model_signing import signing

    from components.platform import keys

    key = keys.private(settings)
    with manifest.commit(final, KIND, {"subject": found.digest}, _facts(found, keys.fingerprint_of(key))) as folder:
        config = signing.Config().set_hashing_config(_Known(hashes))  # type: ignore[arg-type] # it only calls `hash`
        config.use_elliptic_key_signer(private_key=key).sign(found.digest, folder / SIGNATURE)


def _verified(store: Store, settings: Settings, found: Manifest, hashes: dict[str, str]) -> Seal:
    """The seal of an artifact with these files."""
    what = f"the {found.kind} {found.digest[:12]}"
    try:
        folder = store.fetch(uri_of(found.digest))
    except MissingInputError:
        raise RefusedError(
            f"{what} is not signed",
            "it was made while BIOVLM_SIGNING was off, or its signature was removed; run the recipe again",
        ) from None
    except DataError as error:
        raise RefusedError(f"the signature of {what} cannot be read: {error.message}", AGAIN) from None
    refuse_hidden(folder)
    key = _compare(settings, what, folder / SIGNATURE, hashes)
    own = manifest.read(folder)
    expected = Manifest(kind=KIND, files=own.files, parents={"subject": found.digest}, facts=_facts(found, key))
    if (folder / FILE_NAME).read_text(encoding="utf-8") != manifest.as_text(expected):
        raise RefusedError(f"the manifest of the signature of {what} says something else than the signature", AGAIN)
    return Seal(method=KEY, subject=found.digest, signature=own.digest, key=key)


def _facts(found: Manifest, key: str) -> dict[str, str]:
    """What the manifest of a signature says, for readers; it is compared, since nobody signs it."""
    return {"subject_kind": found.kind, "method": KEY, "key": key}


def _compare(settings: Settings, what: str, path: Path, hashes: dict[str, str]) -> str:
    """The fingerprint of the trusted key that signed these hashes; RefusedError for every other outcome, each with its reason."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    from components.platform import keys

    trusted = keys.trusted(settings)
    hint = _signer(what, path)
    if hint not in trusted:
        known = ", ".join(sorted(one[:12] for one in trusted))
        raise RefusedError(
            f"{what} is signed by the key {hint[:12]}, trusted are: {known}",
            "if that key is right, add its public half to BIOVLM_TRUSTED_KEYS; else the artifact comes from somebody else",
        )
    config = verifying.Config().set_hashing_config(_Known(hashes))  # type: ignore[arg-type] # as above
    try:
        config.use_elliptic_key_verifier(public_key=trusted[hint]).verify(what, path)
    except InvalidSignature:
        raise RefusedError(f"the signature of {what} does not fit its statement: one of them was changed", AGAIN) from None
    except ValidationError:
        raise RefusedError(f"the signature of {what} cannot be read: it is no Sigstore bundle", AGAIN) from None
    except ValueError as error:
        said = "other files than these were signed" if str(error).startswith("Signature mismatch") else str(error).split("\n")[0]
        raise RefusedError(f"the signature of {what} does not cover it: {said[:200]}", AGAIN) from None
    except Exception as error:  # noqa: BLE001 (the library raises what its parsers raise; nothing of it may pass)
        raise RefusedError(f"the signature of {what} cannot be read: {type(error).__name__}", AGAIN) from None
    return hint


def _signer(what: str, path: Path) -> str:
    """The fingerprint that the signature names. Nothing is believed yet: it only says which key to try."""
    try:
        bundle = json.loads(path.read_bytes())
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    except FileNotFoundError:
        raise RefusedError(f"the signature of {what} holds no {SIGNATURE}", AGAIN) from None
    except (ValueError, RecursionError):
        raise RefusedError(f"the signature of {what} is not JSON: it is empty, cut or another file", AGAIN) from None
    except (KeyError, TypeError):
        raise RefusedError(f"the signature of {what} names no key: it was made by another method, or changed", AGAIN) from None
    if not isinstance(hint, str) or not hint:
        raise RefusedError(f"the signature of {what} names no key", AGAIN)
    return hint

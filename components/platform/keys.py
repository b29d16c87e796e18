"""Keys for signatures: one private key that signs, any number of public keys that are trusted.

1. `private(settings)` is the file of BIOVLM_SIGNING_KEY. Without one, a key (ECDSA over P-256) is made on first use in `keys` of the
   home, readable by its owner alone; not in a pod, whose home ends with it: nobody would trust that key. A key that others may read is
   refused: it may have been copied.
2. `trusted(settings)` are the public keys of BIOVLM_TRUSTED_KEYS, a PEM file or a folder of them; without it, the one that belongs to
   the private key of this machine. To change keys: add the new public key, sign with the new private key; to revoke one, remove it.
3. `refuse_stranger(settings)` asks before a run, in a pod that signs nothing, whether what will be signed will be believed.

A key is named by its fingerprint, the SHA-256 of its public half as model-signing writes it into a signature. No key appears in a
message, tag or log.
"""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from components.platform.settings import Settings
from model.errors import ConfigError, MissingInputError, RefusedError
from model.manifest import cannot_write

CURVES = ("secp256r1", "secp384r1", "secp521r1")
SECRETS = "make the Secrets `biovlm-signing` and `biovlm-trusted-keys` in the namespace of the steps (infra/README.md)"
HINT = "name a PEM file with an ECDSA key (P-256, P-384 or P-521), without a password"


def private(settings: Settings) -> Path:
    """The file of the private key; made in the home if the settings name none.

    Raises:
        MissingInputError: The settings name a file that is not there, or none in a pod.
        RefusedError: Others than its owner may read it.
        ConfigError: It holds no ECDSA key.
    """
    path = settings.signing_key or settings.home / "keys" / "signing.pem"
    if settings.signing_key is None and settings.pod:
        raise MissingInputError("this pod has no key to sign with", SECRETS)
    if settings.signing_key is None and not path.exists():
        _make(path)
    try:
        status = path.stat()
    except OSError as error:
        raise MissingInputError(f"no signing key at {path}: {error.strerror}", HINT) from None
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise RefusedError(
            f"the signing key {path} has mode {stat.S_IMODE(status.st_mode):03o}: others than its owner may read it",
            f"make a new key if it may have been copied; `chmod 600 {path}` closes the file",
        )
    _public_of(path)
    return path


def trusted(settings: Settings) -> dict[str, Path]:
    """Fingerprint -> file of each public key that is trusted.

    Raises:
        MissingInputError: There is none, or the named place is not there. ConfigError: A file holds no ECDSA key.
    """
    place = settings.trusted_keys
    if place is None:
        own = settings.signing_key or settings.home / "keys" / "signing.pem"
        if not own.exists():
            raise MissingInputError(
                f"no key is trusted: BIOVLM_TRUSTED_KEYS is not set, and there is no signing key at {own}",
                "set BIOVLM_TRUSTED_KEYS to the public key of those who sign",
            )
        return {fingerprint(_public_of(own)): _beside(own)}
    files = sorted(p for p in place.iterdir() if p.suffix in (".pem", ".pub")) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise MissingInputError(f"no public key at {place}", "BIOVLM_TRUSTED_KEYS names a PEM file, or a folder of .pem files")
    return {fingerprint(_public(path)): path for path in files}


def refuse_stranger(settings: Settings) -> None:
    """Nothing in a process that may sign; in a pod that may not, the public half of the key that will sign must be trusted.

    Raises:
        MissingInputError: One of the two is not there. RefusedError: They do not fit. ConfigError: One is no ECDSA key.
    """
    if not (settings.signing and settings.pod):
        return
    if settings.signer is None or settings.trusted_keys is None:
        missing = "biovlm-signing with the key `signing.pub`" if settings.signer is None else "biovlm-trusted-keys"
        raise MissingInputError(f"the run could not sign what it makes: no Secret {missing}", SECRETS)
    signer, known = fingerprint(_public(settings.signer)), trusted(settings)
    if signer not in known:
        raise RefusedError(
            f"the key {signer[:12]} signs in this cluster, trusted are: {', '.join(sorted(one[:12] for one in known))}",
            "add its public half to the Secret biovlm-trusted-keys; else nothing of this run could be promoted",
        )


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """The name of a key: 64 hex digits."""
    return hashlib.sha256(_pem(key)).hexdigest()


def fingerprint_of(path: Path) -> str:
    """The fingerprint of the private key in a file."""
    return fingerprint(_public_of(path))


def _make(path: Path) -> None:
    """Write a new key; of several processes that do it at once, one wins and the others take its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(aside, path)
    except FileExistsError:
        pass  # another process was first
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def _beside(own: Path) -> Path:
    """The public half of a private key as a file next to it, where there is none; model-signing reads files only."""
    path = own.with_suffix(".pub")
    content = _pem(_public_of(own))
    try:
        if not path.is_file() or path.read_bytes() != content:
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            aside.write_bytes(content)
            aside.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def _public_of(path: Path) -> ec.EllipticCurvePublicKey:
    """The public half of the private key in a file."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no private key that can be read: {type(error).__name__}", HINT) from None
    except OSError as error:
        raise MissingInputError(f"cannot read the signing key {path}: {error.strerror}", HINT) from None
    return _checked(key.public_key(), path)


def _public(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        return _checked(serialization.load_pem_public_key(path.read_bytes()), path)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no public key that can be read: {type(error).__name__}", HINT) from None
    except OSError as error:
        raise MissingInputError(f"cannot read the public key {path}: {error.strerror}", HINT) from None


def _checked(key: object, path: Path) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path} holds a key of another kind than ECDSA over {', '.join(CURVES)}", HINT)
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

"""Signatures: what is signed, and every way in which one is refused (cases D7 to D9 and D17)."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from components.platform import keys, signing
from components.platform.shared_store import SharedStore
from components.platform.store import Store
from model import manifest
from model.errors import BiovlmError, ConfigError, MissingInputError, RefusedError

URI = "exports/one"


@pytest.fixture
def place(settings):
    return Store(settings.store)


def make(store, uri=URI, text="weights"):
    """A small artifact."""
    with manifest.commit(store.root / uri, "export", {"checkpoint": "c" * 64}, {"stage": "task"}) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "deeper").mkdir()
        (folder / "deeper" / "text.txt").write_text(text)
    return manifest.read(store.root / uri).digest


def signature_of(store, digest):
    return store.root / signing.uri_of(digest) / signing.SIGNATURE


def reseal(folder):
    """Give a changed folder a manifest that fits, as one would who wants to hide the change."""
    old = manifest.read(folder)
    (folder / manifest.FILE_NAME).unlink()
    return manifest.seal(folder, old.kind, old.parents, old.facts).digest


def refused(store, settings, digest=None, uri=URI):
    with pytest.raises(RefusedError) as caught:
        signing.verify(store, settings, uri, digest)
    return caught.value.message


def write_key(path, key, mode=0o600):
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form))
    path.chmod(mode)
    return path


def write_public(path, key):
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(key.public_key().public_bytes(*form))
    return path


def test_an_artifact_is_signed_once_and_verifies(place, settings):
    digest = make(place)
    first = signing.ensure(place, settings, URI)
    assert signing.ensure(place, settings, URI) == first == signing.verify(place, settings, URI, digest)
    assert (first.method, first.subject) == ("ecdsa-key", digest)
    assert first.key == keys.fingerprint_of(keys.private(settings))


def test_the_key_is_made_on_first_use_for_its_owner_alone_and_two_makers_agree(settings):
    with ThreadPoolExecutor(8) as pool:
        found = {keys.fingerprint_of(path) for path in pool.map(lambda _: keys.private(settings), range(8))}
    assert len(found) == 1
    path = keys.private(settings)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.pem"]


def test_a_key_that_others_may_read_is_refused(settings):
    keys.private(settings).chmod(0o640)
    with pytest.raises(RefusedError, match="mode 640"):
        keys.private(settings)


def test_the_signature_is_that_of_the_tool_itself(place, settings, tmp_path):
    digest = make(place)
    signing.ensure(place, settings, URI)
    public = write_public(tmp_path / "key.pub", serialization.load_pem_private_key(keys.private(settings).read_bytes(), None))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(place.root / URI)]
    command += ["--signature", str(signature_of(place, digest)), "--public_key", str(public)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (place.root / URI / "config.json").write_text("{ }")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_change_is_refused_even_with_a_manifest_that_fits(place, settings):
    digest = make(place)
    signing.ensure(place, settings, URI)
    (place.root / URI / "deeper" / "text.txt").write_text("Weights")
    assert "SHA-256" in refused(place, settings)
    changed = reseal(place.root / URI)
    assert "is not signed" in refused(place, settings)
    shutil.copytree(place.root / signing.uri_of(digest), place.root / signing.uri_of(changed))
    assert "other files than these were signed" in refused(place, settings)


def test_a_manifest_that_was_changed_alone_is_refused(place, settings):
    """Parents and facts are no files: the manifest itself is signed, too."""
    digest = make(place)
    signing.ensure(place, settings, URI)
    path = place.root / URI / manifest.FILE_NAME
    path.write_text(path.read_text().replace("c" * 64, "d" * 64))
    changed = manifest.read(place.root / URI).digest
    shutil.copytree(place.root / signing.uri_of(digest), place.root / signing.uri_of(changed))
    assert "other files than these were signed" in refused(place, settings)


def edit(bundle, **changes):
    """The bundle with its statement changed."""
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement.update(changes)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(bundle)


def other_key(bundle):
    bundle["verificationMaterial"]["publicKey"]["hint"] = "0" * 64
    return json.dumps(bundle)


def certificate(bundle):
    bundle["verificationMaterial"] = {"x509CertificateChain": {"certificates": []}}
    return json.dumps(bundle)


def other_format(bundle):
    bundle["mediaType"] = "application/unknown"
    return json.dumps(bundle)


def no_signatures(bundle):
    bundle["dsseEnvelope"]["signatures"] = []
    return json.dumps(bundle)


BAD = {
    "empty": (lambda b: "", "is not JSON"),
    "cut": (lambda b: json.dumps(b)[:-40], "is not JSON"),
    "a list": (lambda b: "[]", "names no key"),
    "no key": (lambda b: json.dumps({}), "names no key"),
    "another key": (other_key, "is signed by the key 000000000000"),
    "a certificate": (certificate, "names no key"),
    "an unknown format": (other_format, "is no Sigstore bundle"),
    "a statement of another type": (lambda b: edit(b, predicateType="https://example.org/other"), "does not fit its statement"),
    "a statement without files": (lambda b: edit(b, predicate={}), "does not fit its statement"),
    "no signatures": (no_signatures, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_signature_is_refused_with_its_own_reason(place, settings, name):
    digest = make(place)
    signing.ensure(place, settings, URI)
    spoil, reason = BAD[name]
    path = signature_of(place, digest)
    path.write_text(spoil(json.loads(path.read_text())))
    assert "SHA-256" in refused(place, settings) or "bytes" in refused(place, settings)
    reseal(path.parent)
    assert reason in refused(place, settings)


def test_a_missing_signature_is_refused(place, settings):
    digest = make(place)
    assert "is not signed" in refused(place, settings)
    signing.ensure(place, settings, URI)
    signature_of(place, digest).unlink()
    reseal(signature_of(place, digest).parent)
    assert "holds no model.sig" in refused(place, settings)


def test_the_signature_of_something_else_is_refused(place, settings):
    digest, other = make(place), make(place, "exports/two", "other weights")
    signing.ensure(place, settings, "exports/two")
    shutil.copytree(place.root / signing.uri_of(other), place.root / signing.uri_of(digest))
    assert "other files than these were signed" in refused(place, settings)


def test_a_statement_that_leaves_files_out_is_refused(place, settings, tmp_path):
    """model-signing takes what to ignore from the statement: a file that it names could be anything."""
    from model_signing import hashing
    from model_signing import signing as tool

    digest, folder = make(place), place.root / URI
    signing.ensure(place, settings, URI)
    (folder / "deeper" / "text.txt").write_text("anything")
    path = signature_of(place, reseal(folder))
    shutil.copytree(place.root / signing.uri_of(digest), path.parent)
    config = tool.Config().use_elliptic_key_signer(private_key=keys.private(settings))
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["deeper"], ignore_git_paths=False)).sign(folder, path)
    reseal(path.parent)
    assert "leaves files out" in refused(place, settings)


def test_a_new_key_is_trusted_when_it_is_named_and_an_old_one_until_it_is_removed(place, settings, tmp_path):
    old, new = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    folder = tmp_path / "trusted"
    folder.mkdir()
    write_public(folder / "old.pem", old)
    first = replace(settings, signing_key=write_key(tmp_path / "old", old), trusted_keys=folder)
    second = replace(first, signing_key=write_key(tmp_path / "new", new))
    make(place)
    make(place, "exports/two", "other")
    signing.ensure(place, first, URI)
    with pytest.raises(RefusedError, match="is signed by the key"):
        signing.ensure(place, second, "exports/two")
    write_public(folder / "new.pem", new)
    assert signing.verify(place, second, URI).key != signing.verify(place, second, "exports/two").key
    (folder / "old.pem").unlink()
    assert "is signed by the key" in refused(place, second)


def test_keys_that_are_none_are_letters(settings, tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN PRIVATE KEY-----")
    broken.chmod(0o600)
    kinds = {"no private key": broken, "another kind": write_key(tmp_path / "rsa", rsa.generate_private_key(65537, 2048))}
    kinds["another kind than"] = write_key(tmp_path / "k1", ec.generate_private_key(ec.SECP256K1()))
    for reason, path in kinds.items():
        with pytest.raises(ConfigError, match=reason):
            keys.private(replace(settings, signing_key=path))
    with pytest.raises(MissingInputError, match="no signing key"):
        keys.private(replace(settings, signing_key=tmp_path / "gone"))
    with pytest.raises(MissingInputError, match="no key is trusted"):
        keys.trusted(settings)
    with pytest.raises(MissingInputError, match="no public key at"):
        keys.trusted(replace(settings, trusted_keys=tmp_path / "gone"))


def hide_git(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "payload.py").write_text("evil")


HIDDEN = {
    ".git": hide_git,
    ".gitattributes": lambda folder: (folder / ".gitattributes").write_text("evil"),
    "deeper/.hidden": lambda folder: (folder / "deeper" / ".hidden").write_text("evil"),
    "a link": lambda folder: (folder / "link").symlink_to("config.json"),
    "a linked folder": lambda folder: (folder / "linked").symlink_to("/etc", target_is_directory=True),
    "a hard link": lambda folder: os.link(folder / "config.json", folder / "again.json"),
    "a pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "an empty .folder": lambda folder: (folder / ".empty").mkdir(),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_signature_does_not_see_is_refused(place, settings, name):
    make(place)
    signing.ensure(place, settings, URI)
    HIDDEN[name](place.root / URI)
    refused(place, settings)  # by manifest or by walk
    folder = place.root / URI
    with pytest.raises(RefusedError, match="a signature does not see all of it"):
        signing.refuse_hidden(folder)


@pytest.mark.parametrize("start", [b"\x80\x04\x95", b"PK\x03\x04", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_pickle_by_another_name_is_not_signed(place, settings, start, name):
    with manifest.commit(place.root / URI, "export") as folder:
        (folder / name).write_bytes(start + b"x" * 64)
    with pytest.raises(RefusedError, match="by its content|not a safetensors file"):
        signing.ensure(place, settings, URI)
    assert not (place.root / "signatures").exists()


def test_off_only_by_its_word_and_what_was_made_unsigned_is_refused_later(place, settings):
    digest = make(place)
    off = type(settings).from_environment({"BIOVLM_HOME": str(settings.home), "BIOVLM_SIGNING": "off"})
    assert signing.ensure(place, off, URI).method == signing.verify(place, off, URI).method == "off"
    assert not (settings.home / "keys").exists()
    assert signing.is_there(place, off, digest)
    assert not signing.is_there(place, settings, digest)
    assert "is not signed" in refused(place, settings)
    with pytest.raises(ConfigError, match="BIOVLM_SIGNING"):
        type(settings).from_environment({"BIOVLM_SIGNING": "no"})


def test_one_changed_byte_anywhere_is_refused(place, settings):
    """500 random places in artifact, signature and their manifests."""
    digest = make(place)
    signing.ensure(place, settings, URI)
    folders = (place.root / URI, place.root / signing.uri_of(digest))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    dice = random.Random(5)
    for _ in range(500):
        path = dice.choice(files)
        content = path.read_bytes()
        at = dice.randrange(len(content))
        changed = bytearray(content)
        changed[at] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(BiovlmError) as caught:
            signing.verify(place, settings, URI, digest)
        assert int(caught.value.exit_code) in (65, 66, 77), (path, at)
        path.write_bytes(content)
    assert signing.verify(place, settings, URI, digest).method == "ecdsa-key"


def test_a_signature_travels_with_a_shared_store_and_needs_no_bytes(shared, settings, tmp_path):
    """The machine that registers signs by the manifest; the one that loads verifies the bytes."""
    worker, launcher, server = (SharedStore(tmp_path / name, shared) for name in ("worker", "launcher", "server"))
    digest = make(worker)
    worker.publish(URI)
    seal = signing.ensure(launcher, settings, URI, here=False)
    assert not (launcher.root / URI).exists()
    assert signing.check(launcher, settings, URI, digest) == seal
    assert signing.verify(server, settings, URI, digest) == seal
    with pytest.raises(RefusedError, match="not whole, expected"):
        signing.check(server, settings, URI, "0" * 64)

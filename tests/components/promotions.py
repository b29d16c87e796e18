"""Candidates with signed reports and exports, the steps `register` and `promote` on them, and keys of persons."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from components.platform import champion, code, reference, signing
from components.platform.reference import Reference
from components.platform.store import Source, StepRecord, Store
from components.platform.tracking import Tracking
from components.promote import step as promote
from components.register import step as register
from model import manifest
from tests.components.reports import write_report

REGISTER = json.dumps({"registered_model": "mini", "recipe": "micro", "recipe_digest": "f" * 64})
CONFIG = {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}, "text_config": {"model_type": "llama"}}
GATE = {"min_items": 10, "min_image_gain": -1.0, "max_loss_to_champion": 0.01}


class Registry:
    """Candidates with reports, and the two steps on them."""

    def __init__(self, settings, folder):
        self.settings, self.out = settings, folder / "out"
        self.store = Store(settings.store)
        self.use()
        Reference(kind="none").write(self.out / "nobody.json", settings.store)

    def use(self, licence="CC0-1.0"):
        """Data under a licence, for candidates that are made after this."""
        facts = {"sets": {"mini": self.facts("mini", licence)}, "bases": {"tower": self.facts("t")}}
        self.data = self._artifact("data", f"data under {licence}", facts=facts)

    @staticmethod
    def facts(name, licence="CC0-1.0"):
        digest = manifest.digest_of(name)
        return {
            "uri": f"data/{name}",
            "digest": digest,
            "revision": "c0ffee" * 6,
            "dvc_path": name,
            "md5": "m",
            "licence": licence,
        }

    def _record(self, kind, name, key, **inputs):
        sources = {role: Source(kind=r.kind, uri=self.store.uri(r.folder), digest=r.digest) for role, r in inputs.items()}
        parts = {"piece": {}, "identity": {}, "code": code.digest(kind), "revision": {"commit": "abc", "dirty": True}}
        self.store.write_record(StepRecord(key=key, kind=kind, name=name, run_id="r", inputs=sources, started=0.0, **parts))

    def _artifact(self, kind, content, facts=None, **inputs):
        step_kind = {"checkpoint": "train"}.get(kind, kind)
        key = manifest.digest_of([kind, content])
        folder = self.store.folder(step_kind, key)
        parents = {role: r.digest for role, r in inputs.items()}
        if kind == "checkpoint":
            parents |= {"data:mini": manifest.digest_of("mini"), "tower": manifest.digest_of("t")}
        with manifest.commit(folder, kind, parents, facts) as aside:
            (aside / "content").write_text(content)
        self._record(step_kind, content, key, **inputs)
        return Reference.to(folder, manifest.read(folder))

    def candidate(self, name, right):
        """Paths of the references of a checkpoint and its report."""
        made = self._artifact("checkpoint", name, data=self.data)
        folder = write_report(
            self.store.folder("evaluate", manifest.digest_of(["report", name, right])), right, checkpoint=made.digest
        )
        report = Reference.to(folder, manifest.read(folder))
        signing.ensure(self.store, self.settings, self.store.uri(folder))
        self._record("evaluate", "evaluate", folder.name, data=self.data, checkpoint=made)
        for role, ref in (("checkpoint", made), ("report", report), ("data", self.data)):
            ref.write(self.out / f"{name}-{role}.json", self.store.root)
        return name

    def path(self, *parts):
        return str(self.out / f"{'-'.join(parts)}.json")

    def register(self, name):
        paths = (self.path(name, role) for role in ("data", "checkpoint", "report", "receipt"))
        register.run(REGISTER, "store", *paths)
        return reference.read(self.path(name, "receipt"), self.store.root)

    def promote(self, name, rival=None, gate=GATE):
        """Promote as a run does that starts now: against whoever is champion, whose name is `rival`."""
        found, _ = champion.present(self.settings, "mini")
        found.write(self.out / "champion.json", self.store.root)
        against = self.path(rival, "report") if rival else self.path("nobody")
        piece = json.dumps({"registered_model": "mini", "promotion": gate})
        roles = (
            self.path(name, "receipt"),
            self.path(name, "report"),
            self.path("champion"),
            against,
            self.path(name, "decision"),
        )
        promote.run(piece, "store", *roles)
        return reference.read(self.path(name, "decision"), self.store.root).facts

    def aliases(self):
        return {str(k): str(v) for k, v in Tracking(self.settings).client.get_registered_model("mini").aliases.items()}


def make_export(checkpoint, bases, store, settings):
    """Stands for the real export, which needs a model (tests/pipelines has one): an artifact of the checkpoint, signed."""
    folder = store.root / "exports" / checkpoint.digest
    if not folder.exists():
        with manifest.commit(folder, "export", {"checkpoint": checkpoint.digest}) as aside:
            (aside / "config.json").write_text(json.dumps(CONFIG))
    signing.ensure(store, settings, store.uri(folder))
    return folder


def make_person(folder, name):
    """The file of a person's own key; its public half goes into `folder / "approvers"`."""
    (folder / "approvers").mkdir(exist_ok=True)
    key = Ed25519PrivateKey.generate()
    own = folder / f"{name}.key"
    own.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    own.chmod(0o600)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "approvers" / f"{name}.pem").write_bytes(public)
    return own

"""What a model version learned from, read from the manifests and records in the store; no image and no record is opened.

1. `Gatherer(store, index).version(version)` starts at the tags of a version: its checkpoint, its export, its receipt.
2. A checkpoint's manifest says what its stage read: data sets by digest, splits, kinds, records left out, base models, and the
   checkpoint before. That one is followed in the same way, to the first.
3. A base model that was trained here says from which data set; one that was made from an export (a merged adapter) says so as any
   artifact does, by a parent. Every parent becomes an edge.
4. The receipt's report says what the version was asked.

An artifact is read once, whatever number of versions it stands behind. What cannot be read is taken in with the reason (`flaw`), so
that an answer can say that it is not complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.platform import champion
from components.platform.impact.index import Index
from components.platform.store import StepRecord, Store
from model.errors import BiovlmError
from model.manifest import Manifest
from model.recipe import REGISTRY_PREFIX

DATA = "data:"
ASKED_KINDS = ("question",)
BASE_SPLIT = "train"
"""The only split that `model.training.base` reads."""
PARTS = ("tower", "language")
NOT_BIOVLM = "biovlm did not register it"
GONE = "what it was made of is no longer in the store"


class Gatherer:
    """Carries lineage from a store into an index, in one transaction of the index."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store, self._index = store, index
        self._material: dict[str, Mapping[str, Any]] = {}

    def version(self, model: str, number: str, tags: Mapping[str, str]) -> None:
        """Take in a version by its tags; those of a version that biovlm did not make lack what is needed, and it is told so."""
        digest, receipt = tags.get(champion.CHECKPOINT_DIGEST, ""), tags.get(champion.RECEIPT_KEY, "")
        if not digest:
            self._index.add_version(model, number, receipt, None, NOT_BIOVLM)
            return
        artifact, flaw = self._checkpoint(tags.get(champion.CHECKPOINT_PATH, ""), digest)
        if champion.EXPORT in tags:
            self._export(tags[champion.EXPORT], artifact)
        self._asked(receipt, artifact)
        self._index.add_version(model, number, receipt, artifact, flaw)

    def _checkpoint(self, uri: str, digest: str) -> tuple[int, str]:
        """Number of a checkpoint, and why what it learned from is not wholly known."""
        known = self._index.artifact(digest)
        if known is not None:
            return known, ""
        found = self._manifest(uri, digest)
        if found is None:
            return self._index.add_artifact(digest, "checkpoint", "", flaw=GONE), GONE
        record = self._store.record_of(uri)
        stage = str(found.facts.get("stage", ""))
        flaw = self._before(found, record, digest)
        artifact = self._index.add_artifact(digest, "checkpoint", stage, flaw=flaw)
        for parent in found.parents.values():
            if (number := self._known(parent)) is not None:
                self._index.add_edge(artifact, number)
        self._learned(found, record, artifact)
        return artifact, flaw

    def _before(self, found: Manifest, record: StepRecord | None, digest: str) -> str:
        """Take in what a checkpoint stands on: its parent and its base models; why something of it is not known."""
        flaw, model = "", found.facts.get("model", {})
        material = self._facts(record)
        for part in PARTS:
            if part in found.parents:
                flaw = self._base(found.parents[part], model.get(part, {}), material) or flaw
        if "parent" in found.parents:
            source = record.inputs.get("parent") if record else None
            flaw = self._checkpoint(source.uri if source else "", found.parents["parent"])[1] or flaw
        return flaw

    def _learned(self, found: Manifest, record: StepRecord | None, artifact: int) -> None:
        """The records that the stage of a checkpoint read."""
        configuration = found.facts.get("configuration", {})
        material = self._facts(record)
        exclude = configuration.get("exclude", {})
        for mix in configuration.get("piece", {}).get("stage", {}).get("data", ()):
            digest = found.parents.get(f"{DATA}{mix['set']}")
            if digest:
                set_id = self._set(digest, mix["set"], material)
                self._index.add_use(artifact, set_id, mix["split"], mix["kinds"], True, exclude.get(mix["set"], ()))

    def _base(self, digest: str, source: Mapping[str, Any], material: Mapping[str, Any]) -> str:
        """Take in a base model; one of the registry says itself what it was made from. Why that is not known, empty if it is."""
        if self._index.artifact(digest) is not None:
            return ""
        name = str(source.get("source") or "drawn from the seed")
        facts = material.get("bases", {}).get(name.removeprefix(REGISTRY_PREFIX), {})
        licence = str(facts.get("licence") or source.get("licence", ""))
        found = self._manifest(facts.get("uri", ""), digest) if name.startswith(REGISTRY_PREFIX) else None
        # A base model from elsewhere has no parents that anybody here could know; one of the registry has to say them.
        flaw = GONE if found is None and name.startswith(REGISTRY_PREFIX) else ""
        artifact = self._index.add_artifact(digest, "base", name.removeprefix(REGISTRY_PREFIX), licence, flaw)
        for role, parent in (found.parents if found else {}).items():
            if role == "data" or role.startswith(DATA):
                set_id = self._set(parent, role.removeprefix(DATA) if role != "data" else "", material)
                self._index.add_use(artifact, set_id, BASE_SPLIT, (), True, ())
            else:
                self._index.add_edge(artifact, self._placed(parent))
        return flaw

    def _export(self, uri: str, checkpoint: int) -> None:
        """An export is made from its checkpoint alone; a base model may be made from it."""
        try:
            digest = self._store.manifest_of(uri).digest
        except BiovlmError:
            return  # removed to save room; a base model made from it would then be told as not known
        if self._index.artifact(digest) is None:
            self._index.add_edge(self._index.add_artifact(digest, "export", ""), checkpoint)

    def _asked(self, receipt: str, artifact: int) -> None:
        """The records that the version was evaluated on."""
        record = self._store.record("register", receipt) if receipt else None
        report = self._store.record_of(record.inputs["report"].uri) if record and "report" in record.inputs else None
        material = self._facts(report)
        for benchmark in report.piece.get("evaluation", {}).get("benchmarks", ()) if report else ():
            facts = material.get("sets", {}).get(benchmark["set"])
            if facts:
                set_id = self._set(facts["digest"], benchmark["set"], material)
                exclude = material.get("excluded", {}).get(benchmark["set"], ())
                self._index.add_use(artifact, set_id, benchmark["split"], ASKED_KINDS, False, exclude)

    # ------------------------------------------------------------------------------------------------------- what is looked up

    def _set(self, digest: str, name: str, material: Mapping[str, Any]) -> int:
        """Number of a version of a data set; its records are read later (`reading`)."""
        row = self._index.database.execute("SELECT id FROM sets WHERE digest = ?", (digest,)).fetchone()
        if row:
            return int(row[0])
        entries: Iterable[tuple[str, Mapping[str, Any]]] = material.get("sets", {}).items()
        named, facts = next(((key, entry) for key, entry in entries if entry["digest"] == digest), (name, {}))
        revision, licence, uri = (str(facts.get(key, "")) for key in ("revision", "licence", "uri"))
        return self._index.add_set(digest, named, revision, licence, uri, flaw="not read yet")

    def _placed(self, digest: str) -> int:
        """Number of an artifact of which no more than the digest is known, until a version brings it."""
        known = self._known(digest)
        return self._index.add_artifact(digest, "unknown", "", flaw=GONE) if known is None else known

    def _known(self, digest: str) -> int | None:
        row = self._index.database.execute("SELECT id FROM artifacts WHERE digest = ?", (digest,)).fetchone()
        return int(row[0]) if row else None

    def _manifest(self, uri: str, digest: str) -> Manifest | None:
        """The manifest at `uri`, if it is the one of `digest`: another one would tell of another model."""
        try:
            found = self._store.manifest_of(uri) if uri else None
        except BiovlmError:
            return None
        return found if found is not None and found.digest == digest else None

    def _facts(self, record: StepRecord | None) -> Mapping[str, Any]:
        """Facts of the data artifact that a step read: sets and base models with place, revision and licence."""
        source = record.inputs.get("data") if record else None
        if source is None:
            return {}
        if source.digest not in self._material:
            found = self._manifest(source.uri, source.digest)
            self._material[source.digest] = found.facts if found else {}
        return self._material[source.digest]

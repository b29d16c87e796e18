"""The lineage of one step's result: what its record and its manifest say, as a graph.

1. `write(store, kind, key)` is called by every step when its result stands (components/platform/step.py). The document lies beside the
   folder as `steps/KIND/KEY.lineage.json`, not inside it: it names run, machine and time, and equal content must have an equal digest
   whoever made it.
2. `of_step` is a pure function of the record's bytes and the manifest. So `verify` can make it again and compare, and a result that
   was made before there was a lineage gets one when it is asked for (`ensure`).

The record's own SHA-256 is a fact of the step: no byte of it can change without the document.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from components.platform.lineage.graph import Document, Edge, Kind, Node, document
from components.platform.origin import Origin
from components.platform.reference import key_figures
from components.platform.store import Source, StepRecord, Store
from model.errors import DataError, MissingInputError
from model.manifest import Manifest, digest_of
from model.recipe import REGISTRY_PREFIX

SUFFIX = ".lineage.json"
ARTIFACTS = {
    "data": Kind.DATA,
    "checkpoint": Kind.CHECKPOINT,
    "report": Kind.REPORT,
    "receipt": Kind.RECEIPT,
    "decision": Kind.DECISION,
    "export": Kind.EXPORT,
}
"""Kind of a manifest -> kind of its node."""
PARENTS = {
    "parent": (Kind.CHECKPOINT, "continues"),
    "checkpoint": (Kind.CHECKPOINT, "of"),
    "champion": (Kind.CHECKPOINT, "compared with"),
    "champion_report": (Kind.REPORT, "compared with"),
    "report": (Kind.REPORT, "judged by"),
    "receipt": (Kind.RECEIPT, "of"),
    "data": (Kind.DATA, "on"),
    "tower": (Kind.BASE, "built on"),
    "language": (Kind.BASE, "built on"),
}
"""Role of a parent in a manifest -> what it is, and how the artifact depends on it."""
SHOWN = {
    Kind.CHECKPOINT: ("stage", "seed", "step", "epoch", "records", "dtype", "world_sizes", "skipped_steps", "left_out_steps"),
    Kind.REPORT: ("checkpoint", "benchmarks"),
    Kind.DECISION: ("verdict", "version", "champion_before"),
    Kind.RECEIPT: ("registered_model", "version", "model_id"),
    Kind.DATA: ("figures",),
}
"""Facts of a manifest that stand in the graph."""
NAMES = {Kind.CHECKPOINT: "stage"}


def name_of(kind: str, key: str) -> str:
    """Where a step's document is, relative to the store."""
    return f"steps/{kind}/{key}{SUFFIX}"


def write(store: Store, kind: str, key: str) -> Document:
    """Write the document of a step whose record and result stand in the store. MissingInputError: they do not."""
    made = again(store, kind, key)
    store.keep(name_of(kind, key), made.to_bytes())
    return made


def ensure(store: Store, kind: str, key: str) -> Document:
    """The document of a step; written now if its result is older than lineages. Errors as `read`."""
    return write(store, kind, key) if store.small(name_of(kind, key)) is None else read(store, kind, key)


def read(store: Store, kind: str, key: str) -> Document:
    """The document that the step wrote.

    Raises:
        MissingInputError: There is none.
        DataError: It is not one.
    """
    return parse(store.small(name_of(kind, key)), name_of(kind, key))


def ended(store: Store, record: StepRecord) -> bool:
    """Whether the step of a record made a result. One that was refused, or died, leaves a record without seconds, and no lineage."""
    return record.seconds is not None or store.small(name_of(record.kind, record.key)) is not None


def parse(content: bytes | None, place: str) -> Document:
    """The document in the bytes of a file. Errors as `read`."""
    if content is None:
        raise MissingInputError(f"no lineage at {place}", "the store was emptied in part; run the recipe again")
    try:
        return Document.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise DataError(
            f"{place} is not a lineage: {where}: {first['msg']}",
            "it was changed, cut, or written by an older version; run the recipe again",
        ) from None


def again(store: Store, kind: str, key: str) -> Document:
    """What the document of a step must say, from its record and its result. MissingInputError: one is gone; DataError: unreadable."""
    place = f"steps/{kind}/{key}.json"
    content = store.small(place)
    if content is None:
        raise MissingInputError(f"no record at {place}", "the store was emptied in part; run the recipe again")
    return of_step(content, store.manifest_of(f"steps/{kind}/{key}"), place)


def of_step(content: bytes, found: Manifest, place: str = "the record") -> Document:
    """The document of a step, from its record's bytes and its result's manifest. DataError: the record cannot be read."""
    try:
        record = StepRecord.model_validate_json(content)
    except ValidationError:
        raise DataError(f"{place} is not the record of a step", "it was changed or cut; run the recipe again") from None
    artifact, step = _artifact(found), _step(record, content)
    nodes, edges = [artifact, step], [Edge(source=artifact.id, target=step.id, role="made by")]
    for node, edge in (*_read(record, step), *_made_with(record, step), *_parents(found, artifact), *_contents(found, artifact)):
        nodes.append(node)
        edges.append(edge)
    for stated, edge in _stated(record, found):
        nodes += stated
        edges.append(edge)
    return document(artifact, nodes, edges)


def _artifact(found: Manifest) -> Node:
    kind = ARTIFACTS[found.kind]
    facts: dict[str, Any] = {name: found.facts[name] for name in SHOWN.get(kind, ()) if name in found.facts}
    facts |= {"bytes": sum(entry.size_bytes for entry in found.files), "files": len(found.files)}
    if kind is Kind.REPORT:
        facts["figures"] = key_figures(found.facts)
    name = str(found.facts.get(NAMES.get(kind, ""), found.kind))
    if kind is Kind.DECISION:
        facts["failed"] = [reason["check"] for reason in found.facts.get("reasons", ()) if not reason["passed"]]
    return Node.of(kind, name, found.digest, **facts)


def _step(record: StepRecord, content: bytes) -> Node:
    origin = record.origin or Origin()
    known = {} if record.origin is None else origin.model_dump(exclude={"machine", "lock"}, exclude_defaults=True)
    seconds = record.seconds or 0.0
    return Node.of(
        Kind.STEP,
        record.name,
        record.key,
        **known,
        step=record.kind,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.started)),
        seconds=record.seconds,
        gpu_seconds=record.cost.gpu_seconds if record.cost else seconds * origin.gpus,
        queue_seconds=record.cost.queue_seconds if record.cost else None,
        energy_joules=record.cost.energy_joules if record.cost else None,
        seed=record.piece.get("seed"),
        identity=dict(record.identity),
        record=hashlib.sha256(content).hexdigest(),
    )


def _read(record: StepRecord, step: Node) -> Iterator[tuple[Node, Edge]]:
    for role, source in record.inputs.items():
        node = _stub(source)
        yield node, Edge(source=step.id, target=node.id, role=f"read {role}", facts={"uri": source.uri})


def _stub(source: Source) -> Node:
    return Node.of(ARTIFACTS[source.kind], digest=source.digest)


def _made_with(record: StepRecord, step: Node) -> Iterator[tuple[Node, Edge]]:
    """Run, code, commit, slice, lock, libraries and machine of a step."""
    commit, dirty = str(record.revision.get("commit", "unknown")), bool(record.revision.get("dirty", True))
    origin = record.origin
    found = [
        ("in", Node.of(Kind.RUN, record.run_id)),
        ("ran", Node.of(Kind.CODE, record.kind, record.code)),
        ("at", Node.of(Kind.COMMIT, f"{commit}+changes" if dirty else commit, dirty=dirty)),
        ("under", Node.of(Kind.SLICE, record.name, digest_of(record.piece))),
        ("with", Node.of(Kind.LIBRARIES, "libraries", digest_of(record.versions), **record.versions)),
    ]
    if origin is not None:
        found.append(("with", Node.of(Kind.LOCK, "requirements", origin.lock)))
        processor = str(origin.machine.get("processor", "machine"))
        found.append(("on", Node.of(Kind.MACHINE, processor, digest_of(origin.machine), **origin.machine)))
    return ((node, Edge(source=step.id, target=node.id, role=role)) for role, node in found)


def _parents(found: Manifest, artifact: Node) -> Iterator[tuple[Node, Edge]]:
    """What the artifact's own manifest names: the checkpoint it continues, the sets it learned from, its base models."""
    learned = "learned from" if artifact.kind is Kind.CHECKPOINT else "asked"
    for role, digest in found.parents.items():
        kind, how = (Kind.SET, learned) if role.startswith("data:") else PARENTS.get(role, (Kind.DATA, role))
        node = Node.of(kind, digest=digest)
        yield node, Edge(source=artifact.id, target=node.id, role=how, facts={"as": role})


def _contents(found: Manifest, artifact: Node) -> Iterator[tuple[Node, Edge]]:
    """Data sets and base models of a data artifact: where they come from, and under which licence they stand."""
    for group, kind in (("sets", Kind.SET), ("bases", Kind.BASE)):
        for name, facts in found.facts.get(group, {}).items() if found.kind == "data" else ():
            node = Node.of(kind, name, facts["digest"])
            known = {key: facts[key] for key in ("uri", "revision", "dvc_path", "md5") if key in facts}
            yield node, Edge(source=artifact.id, target=node.id, role="holds", facts=known)
            licence = Node.of(Kind.LICENCE, str(facts["licence"]))
            yield licence, Edge(source=node.id, target=licence.id, role="under", facts={"said by": "the data registry"})


def _stated(record: StepRecord, found: Manifest) -> Iterator[tuple[list[Node], Edge]]:
    """The licences of base models as the recipe states them; they may be stricter than what the registry says."""
    for part in ("tower", "language"):
        digest, source = found.parents.get(part), record.piece.get("model", {}).get(part, {})
        if digest and source.get("licence"):
            base, licence = Node.of(Kind.BASE, _name(source), digest), Node.of(Kind.LICENCE, str(source["licence"]))
            yield [base, licence], Edge(source=base.id, target=licence.id, role="under", facts={"said by": "the recipe"})


def _name(source: dict[str, Any]) -> str:
    """What a reader calls a base model; random weights have no name."""
    return str(source.get("source") or "").removeprefix(REGISTRY_PREFIX)

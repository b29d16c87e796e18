"""Whether the lineage of a version is still true: everything reachable hashed again, and every broken edge named.

1. The receipt, with the version's document, is hashed; the document must be the one whose digest the registry and MLflow's run keep.
2. Every step's record and document are read again: the document must be what record and result say now, to the byte.
3. Every artifact that an edge leads to is hashed, file by file: reports, checkpoints, data sets, base models, the export.
4. The version's document must be the union of what the steps say: nothing added, nothing left out, and complete (`complete`).
5. The registry's tags must say what the document says.

All findings are collected, not only the first. A shared store is read from the bucket into an empty folder: a whole copy on this
machine proves nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from components.platform.lineage import complete, steps, version
from components.platform.lineage.graph import Document, Edge, Kind, Node, union
from components.platform.store import Store, step_of
from model import manifest
from model.errors import BiovlmError


@dataclass
class Proof:
    """What a verification found."""

    whole: list[str] = field(default_factory=list)
    """Places that are what they were, in the order in which they were looked at."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """(place, what is wrong there)."""
    _seen: set[str] = field(default_factory=set)

    def note(self, place: str, problems: list[str]) -> bool:
        """Keep what was found at a place; whether it is whole."""
        self.broken += [(place, problem) for problem in problems]
        if not problems:
            self.whole.append(place)
        return not problems

    def once(self, name: str) -> bool:
        """Whether this is asked for the first time."""
        if name in self._seen:
            return False
        self._seen.add(name)
        return True


def prove(store: Store, receipt: str, proof: Proof) -> Document | None:
    """Look at everything that the version of a receipt was made from.

    Args:
        store: Where it is; for a shared store, one whose folder is empty.
        receipt: Key of the registration.
        proof: Gets the findings.

    Returns:
        The version's document; None if it cannot be read, which is then a finding.
    """
    place = f"steps/register/{receipt}"
    if not _artifact(store, place, "", proof):
        return None
    try:
        stored = version.read(store, receipt)
    except BiovlmError as error:
        proof.note(f"{place}/{version.FILE_NAME}", [error.message])
        return None
    parts = _steps(store, [("register", receipt)], proof)
    _artifacts(store, stored, proof)
    _compare(stored, [part for part in parts if part.node(f"{Kind.STEP}:{receipt}") is None], proof)
    proof.note("completeness", list(complete.gaps(stored)))
    registration = next((part for part in parts if part.node(f"{Kind.STEP}:{receipt}") is not None), None)
    if registration is not None:
        _decisions(store, registration, proof)
    return stored


def _decisions(store: Store, registration: Document, proof: Proof) -> None:
    """The decisions about the version, with the champion's report that they compared it with."""
    for key in store.keys("promote"):
        record = store.record("promote", key)
        if record is None:
            # It may be the one about this version: what cannot be read is no proof of anything.
            proof.note(f"steps/promote/{key}.json", ["it is not the record of a step"])
        elif f"{Kind.RECEIPT}:{record.inputs['receipt'].digest}" == registration.about and steps.ended(store, record):
            for part in _steps(store, [("promote", key)], proof, deep=False):
                _artifact(store, f"steps/promote/{key}", _digest(part.about), proof)
                _artifacts(store, part, proof)


def _steps(store: Store, left: list[tuple[str, str]], proof: Proof, deep: bool = True) -> list[Document]:
    """The documents of some steps and, if `deep`, of all before them; each compared with its record and its result."""
    found: list[Document] = []
    while left:
        kind, key = left.pop(0)
        name = steps.name_of(kind, key)
        if not kind or not proof.once(name):
            continue
        try:
            said, now = steps.read(store, kind, key), steps.again(store, kind, key)
        except BiovlmError as error:
            proof.note(name, [error.message])
            continue
        content = store.small(name)
        problems = list(_differences(said, now, "the record and the result"))
        if not problems and content != now.to_bytes():
            problems = ["its bytes are not those of the document it holds"]
        proof.note(name, problems)
        found.append(now)
        if deep:
            left += [step_of(str(edge.facts["uri"])) for edge in now.edges if edge.role.startswith("read ")]
    return found


def _artifacts(store: Store, document: Document, proof: Proof) -> None:
    """Hash everything that an edge with a place leads to."""
    for edge in document.edges:
        if "uri" in edge.facts:
            _artifact(store, str(edge.facts["uri"]), _digest(edge.target), proof, edge)


def _artifact(store: Store, uri: str, digest: str, proof: Proof, edge: Edge | None = None) -> bool:
    """Hash one artifact, unless it was; whether it is whole."""
    if not proof.once(f"{uri}@{digest}"):
        return True
    through = f" (edge {_short(edge.source)} -{edge.role}-> {_short(edge.target)})" if edge else ""
    try:
        content = store.small(f"{uri}/{manifest.FILE_NAME}")
        folder = store.root / uri if type(store) is Store else store.fetch(uri, digest or None)
        said = manifest.read(folder)
        found = [problem.replace(f"{folder}/", "") for problem in manifest.problems(folder, said, digest or None)]
        if not found and content != manifest.as_text(said).encode():
            found = [f"{manifest.FILE_NAME} has other bytes than the manifest that it holds"]
    except BiovlmError as error:
        found = [error.message]
    return proof.note(uri, [problem + through for problem in found])


def _compare(stored: Document, parts: list[Document], proof: Proof) -> None:
    """The version's document against the union of the steps' documents as they must be."""
    own = stored.out_of(stored.about)
    by_version = (f"{Kind.EXPORT}:", f"{Kind.SIGNATURE}:")  # no step's document holds them
    ids = {stored.about, *(edge.target for edge in own if "uri" not in edge.facts or edge.target.startswith(by_version))}
    bare = [Document(about=node.id, nodes=(node,), edges=()) for node in stored.nodes if node.id in ids]
    about = next(part.nodes[0] for part in bare if part.about == stored.about)
    try:
        problems = list(_differences(stored, union(about, [*bare, *parts], own), "the steps"))
    except (BiovlmError, ValueError):  # a step that it names is not there, and was named already
        problems = ["it cannot be made from the lineages of its steps"]
    proof.note("the version's lineage as the union of its steps'", problems)


def _differences(said: Document, now: Document, what: str) -> Iterator[str]:
    """What one document says, and `what` does not, or the other way round."""
    ours, theirs = ({node.id: node for node in one.nodes} for one in (said, now))
    for id in sorted(ours.keys() ^ theirs.keys()):
        yield f"{_short(id)} is {'only' if id in ours else 'not'} in the lineage, {'not' if id in ours else 'but'} in {what}"
    for id in sorted(ours.keys() & theirs.keys()):
        if ours[id] != theirs[id]:
            yield f"{_short(id)}: {', '.join(_changed(ours[id], theirs[id]))} is not what {what} say"
    known = {edge.model_dump_json() for edge in said.edges}
    for edge in now.edges:
        if edge.model_dump_json() not in known:
            yield f"the edge {_edge(edge)} is missing or changed"
    must = {edge.model_dump_json() for edge in now.edges}
    yield from (f"the edge {_edge(edge)} is not in {what}" for edge in said.edges if edge.model_dump_json() not in must)


def _changed(one: Node, other: Node) -> list[str]:
    facts = sorted(key for key in one.facts.keys() | other.facts.keys() if one.facts.get(key) != other.facts.get(key))
    return [*(["name"] if one.name != other.name else []), *facts]


def _edge(edge: Edge) -> str:
    return f"{_short(edge.source)} -{edge.role}-> {_short(edge.target)}"


def _short(id: str) -> str:
    kind, _, name = id.partition(":")
    return f"{kind} {name[:12] if len(name) == 64 else name}"


def _digest(id: str) -> str:
    return id.partition(":")[2]

"""The lineage of a model version: the union of what the steps wrote, and what came after registration.

1. `of_candidate` is called by registration: from the report, the checkpoint and the data down to the first step. Under its number
   (`with_number`) it lies in the receipt, as an artifact of MLflow's run, and its digest is the tag `biovlm.lineage` of the version.
2. `read` gives that document back; the receipt's place is a tag of the version.
3. `whole` adds what could not stand in it: the registration itself, and the decisions about the version with the champion that they
   compared it with. `moved` adds what the ledger tells of it.

The document says nothing of the registration's own time and machine: the same candidate, registered again, has the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from components.platform import signing
from components.platform.ledger.entry import Entry
from components.platform.lineage import steps
from components.platform.lineage.graph import Document, Edge, Kind, Node, document, union
from components.platform.signing import Seal
from components.platform.store import Source, Store, step_of
from model.errors import MissingInputError

CANDIDATE = "candidate"
FILE_NAME = "lineage.json"
LINEAGE_TAG = "biovlm.lineage"
HOW = {"report": "judged by", "checkpoint": "weights of", "data": "data of"}


def of_candidate(
    store: Store,
    model: str,
    inputs: Mapping[str, Source],
    export: str = "",
    recipe: tuple[str, str] = ("", ""),
    facts: Mapping[str, str] | None = None,
) -> Document:
    """The document of a candidate, the version that shall be; `with_number` names it.

    Args:
        store: Where the results are.
        model: Name of the registered model.
        inputs: Role (report, checkpoint, data) -> the artifact that was registered.
        export: Where the folder that is served is, relative to the store.
        recipe: Name and digest of the whole recipe.
        facts: More small facts of the version.

    Raises:
        MissingInputError: A result or its record is gone. DataError: One cannot be read.
    """
    about = Node.of(Kind.VERSION, f"{model}/{CANDIDATE}", **(facts or {}))
    edges = [
        Edge(source=about.id, target=_id(source), role=HOW.get(role, role), facts={"uri": source.uri})
        for role, source in inputs.items()
    ]
    extra: list[Node] = []
    if export:
        folder = Node.of(Kind.EXPORT, "export", store.manifest_of(export).digest)
        extra.append(folder)
        edges.append(Edge(source=about.id, target=folder.id, role="served as", facts={"uri": export}))
    if recipe[1]:
        extra.append(Node.of(Kind.RECIPE, *recipe))
        edges.append(Edge(source=about.id, target=extra[-1].id, role="under"))
    bare = [Document(about=node.id, nodes=(node,), edges=()) for node in (about, *extra)]
    return union(about, [*bare, *(steps.ensure(store, *found) for found in reached(store, inputs.values()))], edges)


def signed(candidate: Document, seals: Mapping[str, Seal]) -> Document:
    """The document of a candidate with what signed it: name of the artifact (`export`, `report`) -> its seal. Where signing was
    switched off, the lineage says so."""
    about = candidate.node(candidate.about)
    assert about is not None  # a document holds what it is about
    nodes, edges = list(candidate.nodes), list(candidate.edges)
    for name, seal in seals.items():
        off = seal.method == signing.OFF
        node = Node.of(Kind.SIGNATURE, signing.OFF) if off else Node.of(Kind.SIGNATURE, name, seal.signature, key=seal.key)
        place = {} if off else {"uri": signing.uri_of(seal.subject)}
        nodes.append(node)
        edges.append(Edge(source=about.id, target=node.id, role="signed by", facts={"what": name, **place}))
    return document(about, nodes, edges)


def with_number(candidate: Document, number: str) -> Document:
    """The document of a candidate, once registration has given it a number."""
    old = candidate.node(candidate.about)
    assert old is not None  # a document holds what it is about
    name = f"{old.name.rpartition('/')[0]}/{number}"
    new = old.model_copy(update={"id": f"{Kind.VERSION}:{name}", "name": name})
    moved = [edge.model_copy(update={"source": new.id}) if edge.source == old.id else edge for edge in candidate.edges]
    return document(new, (node for node in candidate.nodes if node.id != old.id), moved)


def reached(store: Store, sources: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Kind and key of every step that made one of `sources`, what those were made from, and so on; each once, in order."""
    left, seen = [source.uri for source in sources], set()
    while left:
        uri = left.pop(0)
        kind, key = step_of(uri)
        if key in seen or not kind:
            continue
        seen.add(key)
        yield kind, key
        left += [str(edge.facts["uri"]) for edge in steps.ensure(store, kind, key).edges if edge.role.startswith("read ")]


def read(store: Store, receipt: str) -> Document:
    """The document in a receipt, whose step has the key `receipt`. Errors as `steps.read`."""
    place = f"steps/register/{receipt}"
    found = store.manifest_of(place)
    if FILE_NAME not in {entry.path for entry in found.files}:
        raise MissingInputError(f"no lineage at {place}/{FILE_NAME}", "the version is older than lineages; run the recipe again")
    return steps.parse((store.fetch(place) / FILE_NAME).read_bytes(), f"{place}/{FILE_NAME}")


def whole(store: Store, stored: Document, receipt: str) -> Document:
    """The lineage of a version with all that came after: its registration and the decisions about it."""
    about = stored.node(stored.about)
    assert about is not None  # a document cannot be read without it
    registration = steps.ensure(store, "register", receipt)
    parts, edges = [stored, registration], [Edge(source=about.id, target=registration.about, role="recorded in")]
    for found in decisions(store, registration.about):
        parts.append(found)
        edges.append(Edge(source=about.id, target=found.about, role="decided by"))
        champion = _champion(found, about)
        if champion is not None:
            parts.append(Document(about=champion.id, nodes=(champion,), edges=()))
            edges.append(Edge(source=found.about, target=champion.id, role="compared with"))
    return union(about, parts, edges)


def moved(found: Document, entries: Sequence[Entry], number: str) -> Document:
    """The lineage of version `number` with the entries of the ledger that are about it, or moved an alias to it."""
    about = found.node(found.about)
    assert about is not None  # a document cannot be read without it
    mine = [entry for entry in entries if number in (entry.version, *entry.moves.values())]
    nodes = [
        Node.of(
            Kind.MOVE,
            f"{entry.kind} {entry.number}",
            entry.digest,
            **entry.model_dump(include={"number", "time", "version", "moves", "by", "reason", "evidence", "attempt"}),
        )
        for entry in mine
    ]
    edges = [Edge(source=about.id, target=node.id, role="moved by") for node in nodes]
    return document(about, [*found.nodes, *nodes], [*found.edges, *edges])


def decisions(store: Store, receipt: str) -> Iterator[Document]:
    """The documents of all decisions about the version of a receipt's id."""
    for key in store.keys("promote"):
        record = store.record("promote", key)
        source = record.inputs.get("receipt") if record else None
        if record is not None and source is not None and _id(source) == receipt and steps.ended(store, record):
            yield steps.ensure(store, "promote", key)


def _champion(decision: Document, about: Node) -> Node | None:
    """The version that was champion when it was decided."""
    found = decision.node(decision.about)
    before = str(found.facts.get("champion_before", "none")) if found else "none"
    model = about.name.rpartition("/")[0]
    name = f"{model}/{before}"
    return None if before == "none" or name == about.name else Node.of(Kind.VERSION, name)


def _id(source: Source) -> str:
    return f"{steps.ARTIFACTS[source.kind]}:{source.digest}"

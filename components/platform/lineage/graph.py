"""The lineage of a result as a typed graph: what it was made from, by whom, where, and under which terms.

1. A `Node` is one thing: an artifact by the digest of its manifest, a step by its key, a licence by its name. Its id is
   `kind:digest-or-name`, so the same thing has the same id in every document.
2. An `Edge` leads from a thing to what it was made from, learned from, read, ran or stands under; `role` says which.
3. A `Document` holds the nodes and edges of one result, sorted, so that equal content has equal bytes and one digest.
4. `union` puts documents together: facts of one thing add up, and two that contradict each other are a DataError.

Pure: reads nothing, asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from model.errors import DataError
from model.manifest import digest_of

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """What a node is."""

    VERSION = "version"
    """A version of a registered model: NAME/NUMBER."""
    EXPORT = "export"
    """The plain transformers folder that is served."""
    SIGNATURE = "signature"
    """The signature of a version's files; by name `off` where it was switched off."""
    RECEIPT = "receipt"
    """What registration left."""
    DECISION = "decision"
    """What the gate said of a version."""
    MOVE = "move"
    """An entry of the ledger that moved aliases."""
    REPORT = "report"
    """An evaluation."""
    CHECKPOINT = "checkpoint"
    """What a training stage learned."""
    DATA = "data"
    """What the data step found: which data sets and base models, in which versions."""
    SET = "set"
    """A data set, every file of it."""
    BASE = "base"
    """A base model, every file of it."""
    LICENCE = "licence"
    """The name of the terms of a data set or base model."""
    STEP = "step"
    """The work that made an artifact, by its key."""
    RUN = "run"
    """A run of the pipeline."""
    CODE = "code"
    """The code that a step could import, by the digest of its files."""
    COMMIT = "commit"
    """Where that code came from; `COMMIT+changes` if it was changed since."""
    SLICE = "slice"
    """The part of the recipe that a step read."""
    RECIPE = "recipe"
    """A whole recipe."""
    LOCK = "lock"
    """The locked requirements of the environment."""
    LIBRARIES = "libraries"
    """Versions of the libraries that a result depends on."""
    MACHINE = "machine"
    """Processor, memory, GPUs and image of where it ran."""


class Node(BaseModel):
    """One thing that something was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="`kind:digest`, or `kind:name` where there is no digest.")
    kind: Kind
    name: str = Field(default="", description="What a reader calls it.")
    digest: str = Field(default="", description="What it is known by, if it has bytes: 64 hex digits, or a commit.")
    facts: dict[str, JsonValue] = Field(default_factory=dict, description="Small facts; never content of records.")

    @classmethod
    def of(cls, kind: Kind, name: str = "", digest: str = "", **facts: Any) -> Node:
        """A node with the id that follows from the rest; facts that are None are left out."""
        known = {key: value for key, value in facts.items() if value is not None}
        return cls(id=f"{kind}:{digest or name}", kind=kind, name=name, digest=digest, facts=known)

    @model_validator(mode="after")
    def _id_follows(self) -> Node:
        if self.id != f"{self.kind}:{self.digest or self.name}":
            raise ValueError(f"the id {self.id!r} does not follow from kind, digest and name")
        return self

    @property
    def label(self) -> str:
        """What a reader sees: its name, else the start of its digest."""
        return self.name or self.digest[:12]


class Edge(BaseModel):
    """From a thing to one that it depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="Id of the thing.")
    target: str = Field(description="Id of what it depends on.")
    role: str = Field(description="How: made by, read data, learned from, built on, continues, under, ...")
    facts: dict[str, JsonValue] = Field(
        default_factory=dict, description="What belongs to both: the revision under which a set was read."
    )


class Document(BaseModel):
    """What one result was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="Version of this layout.")
    about: str = Field(description="Id of the result.")
    nodes: tuple[Node, ...] = Field(description="Sorted by id, each once.")
    edges: tuple[Edge, ...] = Field(description="Sorted by source, role and target.")

    @model_validator(mode="after")
    def _closed(self) -> Document:
        ids = [node.id for node in self.nodes]
        if ids != sorted(set(ids)):
            raise ValueError("nodes are not sorted, or one stands twice")
        known = set(ids)
        loose = [edge for edge in self.edges if edge.source not in known or edge.target not in known]
        if loose or self.about not in known:
            raise ValueError(f"a node is missing: {loose[0].target if loose else self.about}")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the canonical JSON of this document."""
        return digest_of(self.model_dump(mode="json"))

    def to_bytes(self) -> bytes:
        """As it stands in a file."""
        return self.model_dump_json(indent=1).encode()

    def node(self, id: str) -> Node | None:
        """The node of that id."""
        return next((node for node in self.nodes if node.id == id), None)

    def of(self, kind: Kind) -> tuple[Node, ...]:
        """All nodes of a kind."""
        return tuple(node for node in self.nodes if node.kind is kind)

    def out_of(self, id: str) -> tuple[Edge, ...]:
        """The edges that leave a node."""
        return tuple(edge for edge in self.edges if edge.source == id)

    def ancestors(self, id: str, roles: frozenset[str] | None = None) -> tuple[Node, ...]:
        """Everything that a node depends on, through edges of `roles` (all, unless given); sorted by id, without itself."""
        seen, left = {id}, [id]
        outgoing: dict[str, list[Edge]] = {}
        for edge in self.edges:
            outgoing.setdefault(edge.source, []).append(edge)
        while left:
            for edge in outgoing.get(left.pop(), ()):
                if edge.target not in seen and (roles is None or edge.role in roles):
                    seen.add(edge.target)
                    left.append(edge.target)
        return tuple(node for node in self.nodes if node.id in seen - {id})


def document(about: Node, nodes: Iterable[Node], edges: Iterable[Edge]) -> Document:
    """The document of `about`: nodes merged and sorted, edges each once."""
    merged: dict[str, Node] = {}
    for node in (about, *nodes):
        merged[node.id] = _merged(merged[node.id], node) if node.id in merged else node
    once = {(edge.source, edge.role, edge.target, digest_of(edge.facts)): edge for edge in edges}
    return Document(
        about=about.id,
        nodes=tuple(merged[id] for id in sorted(merged)),
        edges=tuple(once[key] for key in sorted(once)),
    )


def union(about: Node, documents: Iterable[Document], edges: Iterable[Edge] = ()) -> Document:
    """One document about `about` that says all that `documents` say, and `edges` besides.

    Raises:
        DataError: Two of them say different things of the same node.
    """
    parts = list(documents)
    return document(
        about, (node for part in parts for node in part.nodes), (*(edge for part in parts for edge in part.edges), *edges)
    )


def _merged(one: Node, other: Node) -> Node:
    """What both say of the same thing. One may know more facts; equal bytes may have two names, and the first in order is kept."""
    differing = [key for key in one.facts.keys() & other.facts.keys() if one.facts[key] != other.facts[key]]
    if differing:
        raise DataError(
            f"two lineages contradict each other about {one.id[:40]}: {', '.join(sorted(differing))}",
            "one of them was changed, or its step ran twice; `biovlm lineage verify` says which file it is",
        )
    facts: dict[str, JsonValue] = {**one.facts, **other.facts}
    name = min((name for name in (one.name, other.name) if name), default="")
    return one.model_copy(update={"name": name, "facts": {key: facts[key] for key in sorted(facts)}})

"""The lineage of a model version: a tree from the version down to data, base weights, code and recipe.

1. `tree(store, uri)` follows records and manifests in the store, from one artifact to all that it was made from.
2. `register` puts the version on top and keeps the JSON in the receipt, where its hash is part of the receipt's digest.
3. `render(node)` draws it as text.

Pure assembly: reads the store, asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from components.platform.store import StepRecord, Store
from model.manifest import Manifest, digest_of

SHOWN = 16
"""Hex digits of a digest that a reader sees."""


class Node(BaseModel):
    """One thing that something was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="version, report, checkpoint, data, set, base, code or recipe.")
    name: str
    digest: str = ""
    facts: dict[str, str] = Field(default_factory=dict, description="Small facts for readers: revision, licence, commit, ...")
    children: tuple[Node, ...] = ()


def tree(store: Store, uri: str) -> Node:
    """The lineage of the artifact at `uri`, relative to the store."""
    found = store.manifest_of(uri)
    step_kind, key = PurePosixPath(uri).parts[-2:]
    record = store.record(step_kind, key)
    children = [*_inputs(store, record), *_contents(found), *_maker(record)]
    name = record.name if record else found.kind
    facts = {"run": record.run_id} if record else {"record": "missing"}
    return Node(kind=found.kind, name=name, digest=found.digest, facts=facts, children=tuple(children))


def render(node: Node) -> str:
    """The tree as lines of text; what was shown once with all below it is only named the next time."""
    return "\n".join(_lines(node, "", "", set()))


def relative(store: Store, folder: Path) -> str:
    """The place of an artifact in the store, for `tree`."""
    return store.uri(folder)


def _inputs(store: Store, record: StepRecord | None) -> Iterator[Node]:
    for source in record.inputs.values() if record else ():
        yield tree(store, source.uri)


def _contents(found: Manifest) -> Iterator[Node]:
    """Data sets and base models of a data artifact, with where they come from and under which licence."""
    for group, kind in (("sets", "set"), ("bases", "base")):
        for name, facts in found.facts.get(group, {}).items() if found.kind == "data" else ():
            shown = {"dvc": f"{facts['dvc_path']}@{facts['revision'][:12]}", "md5": facts["md5"], "licence": facts["licence"]}
            yield Node(kind=kind, name=name, digest=facts["digest"], facts=shown)


def _maker(record: StepRecord | None) -> Iterator[Node]:
    """Code and recipe of the step."""
    if record is None:
        return
    commit = str(record.revision.get("commit", "unknown"))
    facts = {"commit": commit, "dirty": str(record.revision.get("dirty", True)).lower()}
    yield Node(kind="code", name=record.kind, digest=record.code, facts=facts | record.versions)
    yield Node(kind="recipe", name=f"slice of {record.name}", digest=digest_of(record.piece))


def _lines(node: Node, first: str, rest: str, shown: set[str]) -> Iterator[str]:
    digest = f" {node.digest[:SHOWN]}" if node.digest else ""
    again = node.digest in shown and bool(node.children)
    facts = "".join(f"  {key}={value}" for key, value in node.facts.items() if key not in _LONG)
    yield f"{first}{node.kind} {node.name}{digest}{'  (see above)' if again else facts}"
    shown.add(node.digest)
    for position, child in enumerate(() if again else node.children):
        last = position == len(node.children) - 1
        yield from _lines(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), shown)


_LONG = frozenset({"python", "torch", "transformers", "peft", "safetensors", "ray", "numpy", "pillow", "md5"})
"""Facts that stand in the JSON and would only widen the picture."""

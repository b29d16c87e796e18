"""A lineage as text: a tree that fits a terminal.

1. `render(document, width)` begins with what the document is about and follows its edges, the weights first.
2. What was shown with all below it is only named the next time.
3. What has nothing below it (run, code, commit, machine, ...) stands behind one another in lines of its own.

Pure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pydantic import JsonValue

from components.platform.lineage.graph import Document, Edge, Kind, Node

WIDTH = 80
SHOWN = 12
"""Hex digits of a digest that a reader sees."""
ORDER = ("weights of", "continues", "built on", "learned from", "judged by", "served as", "signed by", "decided by", "moved by")
"""Roles that come first, in this order; the others follow by name."""
FACTS: dict[Kind, tuple[str, ...]] = {
    Kind.VERSION: ("use",),
    Kind.CHECKPOINT: ("seed", "records", "skipped_steps"),
    Kind.REPORT: ("figures",),
    Kind.DECISION: ("verdict", "failed"),
    Kind.STEP: ("started", "seconds", "gpu_seconds", "tries", "trigger", "attempt", "workers", "job"),
    Kind.RECEIPT: ("version",),
    Kind.SIGNATURE: ("method", "key"),
    Kind.MOVE: ("moves", "by", "time", "reason"),
}
"""Facts that stand in the picture; all of them stand in the JSON."""


def render(document: Document, width: int = WIDTH) -> str:
    """The tree as lines of at most `width` characters."""
    top = document.node(document.about)
    assert top is not None  # a document holds what it is about
    lines = [label(top), *_facts_lines(top, "", width), *_below(document, top, "", width, {top.id})]
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in lines)


def label(node: Node) -> str:
    """Kind, name and the start of the digest."""
    digest = node.digest if not node.digest or len(node.digest) != 64 else node.digest[:SHOWN]
    return " ".join(dict.fromkeys(word for word in (str(node.kind), node.name, digest) if word))


def facts(node: Node) -> str:
    """The facts that a picture shows."""
    pairs = [(name, node.facts[name]) for name in FACTS.get(node.kind, ()) if node.facts.get(name) not in (None, [], {}, "")]
    return ", ".join(plain(value) if isinstance(value, dict) else f"{name} {plain(value)}" for name, value in pairs)


def plain(value: JsonValue) -> str:
    """A fact as a reader sees it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def ordered(edges: tuple[Edge, ...]) -> list[Edge]:
    """Edges of one node, the weights first; one of each role and target."""
    once = {(edge.role, edge.target): edge for edge in edges}
    return sorted(once.values(), key=lambda e: (ORDER.index(e.role) if e.role in ORDER else len(ORDER), e.role, e.target))


def _below(document: Document, node: Node, rest: str, width: int, shown: set[str]) -> Iterator[str]:
    leaves, branches = _parted(document, node)
    if leaves:
        words = "; ".join(f"{edge.role} {_name(document, edge)}" for edge in leaves)
        start = rest + ("│  " if branches else "   ")
        yield from textwrap.wrap(words, width, initial_indent=start, subsequent_indent=start, break_long_words=True)
    for position, edge in enumerate(branches):
        last = position == len(branches) - 1
        child = document.node(edge.target)
        assert child is not None  # a document is closed
        again = child.id in shown and bool(document.out_of(child.id))
        yield f"{rest}{'└─ ' if last else '├─ '}{edge.role}: {label(child)}{' (see above)' if again else ''}"
        if again:
            continue
        shown.add(child.id)
        deeper = rest + ("   " if last else "│  ")
        below = bool(_parted(document, child)[1])
        yield from _facts_lines(child, deeper + ("│  " if below else "   "), width)
        if edge.facts.get("revision"):
            yield f"{deeper}{'│  ' if below else '   '}{edge.facts['dvc_path']} at revision {str(edge.facts['revision'])[:SHOWN]}"
        yield from _below(document, child, deeper, width, shown)


def _parted(document: Document, node: Node) -> tuple[list[Edge], list[Edge]]:
    """Edges of a step to what has nothing below it, and all the others."""
    edges = ordered(document.out_of(node.id))
    leaves = [edge for edge in edges if not document.out_of(edge.target) and node.kind is Kind.STEP]
    return leaves, [edge for edge in edges if edge not in leaves]


def _facts_lines(node: Node, start: str, width: int) -> list[str]:
    return textwrap.wrap(facts(node), width, initial_indent=start, subsequent_indent=start)


def _name(document: Document, edge: Edge) -> str:
    node = document.node(edge.target)
    return label(node) if node else edge.target

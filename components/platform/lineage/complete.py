"""Whether a lineage is complete: every question that an auditor asks has an answer in it. Pure.

`REQUIRED` says which edges must leave a node of each kind. A result that is older than the lineage lacks some, and is then named: what is
not known is not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator

from components.platform.lineage.graph import Document, Kind

REQUIRED: dict[Kind, tuple[tuple[str, Kind], ...]] = {
    Kind.VERSION: (
        ("weights of", Kind.CHECKPOINT),
        ("judged by", Kind.REPORT),
        ("data of", Kind.DATA),
        ("served as", Kind.EXPORT),
        ("under", Kind.RECIPE),
    ),
    Kind.CHECKPOINT: (("made by", Kind.STEP), ("learned from", Kind.SET), ("built on", Kind.BASE)),
    Kind.REPORT: (("made by", Kind.STEP), ("of", Kind.CHECKPOINT), ("asked", Kind.SET)),
    Kind.DATA: (("made by", Kind.STEP), ("holds", Kind.SET)),
    Kind.SET: (("under", Kind.LICENCE),),
    Kind.BASE: (("under", Kind.LICENCE),),
    Kind.STEP: (
        ("in", Kind.RUN),
        ("ran", Kind.CODE),
        ("at", Kind.COMMIT),
        ("under", Kind.SLICE),
        ("with", Kind.LIBRARIES),
        ("with", Kind.LOCK),
        ("on", Kind.MACHINE),
    ),
}
"""Kind of a node -> (role, kind of the target) of each edge that it must have."""


def gaps(document: Document) -> Iterator[str]:
    """A sentence for each answer that is missing."""
    kinds = {node.id: node.kind for node in document.nodes}
    there = {(edge.source, edge.role, kinds[edge.target]) for edge in document.edges}
    for node in document.nodes:
        for role, kind in REQUIRED.get(node.kind, ()):
            if (node.id, role, kind) not in there:
                yield f"{node.kind} {node.label} has no edge -{role}-> {kind}"

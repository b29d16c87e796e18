"""The lineage as a page: one HTML file with the graph drawn, every node with its facts, and the terms that follow from the licences.

1. `render` computes two drawings (`drawing`), for a screen and for a telephone, and fills `page.html.j2`; jinja escapes every value.
2. Style and drawings stand inside the file: it needs no network and can be mailed, printed and archived.
"""

from __future__ import annotations

from pathlib import Path

from components.platform.lineage import drawing, licences
from components.platform.lineage.graph import Document, Kind
from components.platform.lineage.text import label, ordered, plain
from model.evaluation.report_template import template

TEMPLATE = Path(__file__).with_name("page.html.j2")
TITLES = {
    Kind.VERSION: "Versions",
    Kind.CHECKPOINT: "Checkpoints",
    Kind.SET: "Data sets",
    Kind.BASE: "Base models",
    Kind.LICENCE: "Licences",
    Kind.REPORT: "Evaluation reports",
    Kind.DECISION: "Decisions of the gate",
    Kind.MOVE: "Moves of aliases",
    Kind.SIGNATURE: "Signatures",
    Kind.EXPORT: "What is served",
    Kind.STEP: "Steps",
    Kind.RUN: "Runs",
    Kind.COMMIT: "Commits",
    Kind.CODE: "Code",
    Kind.MACHINE: "Machines",
    Kind.LIBRARIES: "Libraries",
    Kind.LOCK: "Locked requirements",
    Kind.RECIPE: "Recipes",
    Kind.SLICE: "Slices of the recipe",
    Kind.DATA: "Data artifacts",
    Kind.RECEIPT: "Receipts",
}
"""Groups of the table, in order."""


def render(document: Document) -> str:
    """The page as HTML."""
    taint = licences.strictest(document)
    return template(TEMPLATE, {"label": label, "plain": plain}).render(
        document=document,
        top=document.node(document.about),
        pictures={"screen": drawing.wide(document), "telephone": drawing.narrow(document)},
        high=drawing.HIGH,
        groups=[(title, nodes) for kind, title in TITLES.items() if (nodes := document.of(kind))],
        below={
            node.id: [(edge, document.node(edge.target)) for edge in ordered(document.out_of(node.id))] for node in document.nodes
        },
        taint=taint,
        words=licences.WORDS[taint.terms],
        anchors={node.id: f"n{number}" for number, node in enumerate(document.nodes)},
    )

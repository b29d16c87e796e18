"""A lineage as boxes and lines: coordinates for the page's drawing, in pixels. Pure.

1. `drawn(document)` keeps what has bytes or terms; steps and what they ran with stand in the page's table.
2. `wide` puts it into rows: a thing stands below everything that depends on it. Lines that pass a row get a place in it, and two
   sweeps by the mean of the neighbours untangle them.
3. `narrow` puts the same boxes into one column, for a telephone, with the lines as arcs beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from components.platform.lineage.graph import Document, Edge, Kind, Node
from components.platform.lineage.text import facts, label

DRAWN = frozenset(
    {
        *(Kind.VERSION, Kind.EXPORT, Kind.SIGNATURE, Kind.DECISION, Kind.MOVE, Kind.REPORT),
        *(Kind.CHECKPOINT, Kind.SET, Kind.BASE, Kind.LICENCE),
    }
)
TONES = {
    "learn": ("weights of", "continues", "learned from", "built on"),
    "judge": ("judged by", "asked", "of", "decided by", "compared with"),
    "terms": ("under", "signed by", "served as", "moved by"),
}
"""What a line is about -> the roles of its edges."""
WIDTH, GAP, ROW, HIGH = 1000.0, 14.0, 104.0, 62.0
WIDEST, THIN = 230.0, 24.0
NARROW, SIDE, PITCH = 340.0, 64.0, 76.0
PER_CHARACTER = (7.4, 6.3)
"""Width of a character of the title and of the line below it."""
SWEEPS = 4


@dataclass(frozen=True)
class Box:
    """A node."""

    node: Node
    x: float
    y: float
    width: float
    title: str
    detail: str


@dataclass(frozen=True)
class Line:
    """An edge."""

    path: str
    tone: str
    title: str


@dataclass(frozen=True)
class Picture:
    """A drawing of `width` x `height` pixels."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def drawn(document: Document) -> tuple[dict[str, Node], list[Edge]]:
    """The nodes that are drawn, by id, and one edge for each pair and role among them."""
    nodes = {node.id: node for node in document.nodes if node.kind in DRAWN}
    once = {(e.source, e.target, e.role): e for e in document.edges if e.source in nodes and e.target in nodes}
    kept = [edge for edge in once.values() if edge.source != edge.target]
    touched = {end for edge in kept for end in (edge.source, edge.target)} | {document.about}
    return {id: node for id, node in nodes.items() if id in touched}, kept


def wide(document: Document) -> Picture:
    """The drawing for a screen."""
    nodes, edges = drawn(document)
    depth = _depths(nodes, edges)
    rows, routes = _rows(depth, edges)
    _untangle(rows, routes)
    most = max(sum(id in nodes for id in row) for row in rows)
    width = min(WIDEST, (WIDTH - GAP * most - THIN * 4) / most)
    at: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        widths = [width if id in nodes else THIN for id in row]
        x = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
        for id, own in zip(row, widths, strict=True):
            at[id] = (x + own / 2, number * ROW + GAP)
            x += own + GAP
    boxes = tuple(_box(node, at[id][0] - width / 2, at[id][1], width) for id, node in nodes.items())
    lines = tuple(Line(_bent([at[id] for id in route]), _tone(edge), _said(edge, nodes)) for edge, route in routes)
    return Picture(WIDTH, len(rows) * ROW - (ROW - HIGH) + 2 * GAP, boxes, lines)


def narrow(document: Document) -> Picture:
    """The drawing for a telephone."""
    nodes, edges = drawn(document)
    depth = _depths(nodes, edges)
    order = sorted(nodes, key=lambda id: (depth[id], nodes[id].kind, id))
    at = {id: GAP + PITCH * place for place, id in enumerate(order)}
    boxes = tuple(_box(nodes[id], SIDE, at[id], NARROW - SIDE - 2) for id in order)
    lines = []
    for edge in edges:
        start, end = at[edge.source] + HIGH * 0.62, at[edge.target] + HIGH * 0.38
        out = SIDE - min(SIDE - 4, 10 + 7 * abs(order.index(edge.target) - order.index(edge.source)))
        path = f"M{SIDE:.1f},{start:.1f} C{out:.1f},{start:.1f} {out:.1f},{end:.1f} {SIDE:.1f},{end:.1f}"
        lines.append(Line(path, _tone(edge), _said(edge, nodes)))
    return Picture(NARROW, PITCH * len(order) + GAP, boxes, tuple(lines))


def _depths(nodes: dict[str, Node], edges: Sequence[Edge]) -> dict[str, int]:
    """Row of each node: one below the lowest of what depends on it. A circle, which no honest lineage has, is cut after all rows."""
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        deeper: dict[str, int] = {}
        for edge in edges:
            if depth[edge.target] <= depth[edge.source] < len(nodes) - 1:
                deeper[edge.target] = max(deeper.get(edge.target, 0), depth[edge.source] + 1)
        if not deeper:
            break
        depth |= deeper
    return depth


def _rows(depth: dict[str, int], edges: Sequence[Edge]) -> tuple[list[list[str]], list[tuple[Edge, list[str]]]]:
    """Ids by row, with a place for each line that passes one; and the way of each edge through them."""
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for id, row in sorted(depth.items()):
        rows[row].append(id)
    routes = []
    for number, edge in enumerate(edges):
        route = [edge.source]
        for row in range(depth[edge.source] + 1, depth[edge.target]):
            route.append(f"through {number} {row}")
            rows[row].append(route[-1])
        routes.append((edge, [*route, edge.target]))
    return rows, routes


def _untangle(rows: list[list[str]], routes: Sequence[tuple[Edge, list[str]]]) -> None:
    """Order each row by the mean place of its neighbours above and below."""
    near: dict[str, list[str]] = {}
    for _, route in routes:
        for one, other in itertools.pairwise(route):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    for sweep in range(SWEEPS):
        place = {id: (position + 0.5) / len(row) for row in rows for position, id in enumerate(row)}
        for row in rows if sweep % 2 == 0 else reversed(rows):
            means = {id: sum(place[n] for n in near[id]) / len(near[id]) if id in near else place[id] for id in row}
            row.sort(key=lambda id: (means[id], id))
            place |= {id: (position + 0.5) / len(row) for position, id in enumerate(row)}


def _bent(points: list[tuple[float, float]]) -> str:
    """A line from the foot of the first box through the rows to the head of the last."""
    x, y = points[0][0], points[0][1] + HIGH
    path = f"M{x:.1f},{y:.1f}"
    for number, (to_x, top) in enumerate(points[1:], start=1):
        half = (top - y) / 2
        path += f" C{x:.1f},{y + half:.1f} {to_x:.1f},{top - half:.1f} {to_x:.1f},{top:.1f}"
        last = number == len(points) - 1
        if not last:
            path += f" L{to_x:.1f},{top + HIGH:.1f}"
        x, y = to_x, top + HIGH
    return path


def _box(node: Node, x: float, y: float, width: float) -> Box:
    title = label(node).removeprefix(f"{node.kind} ")
    return Box(
        node, x, y, width, *(_cut(text, width, per) for text, per in zip((title, facts(node)), PER_CHARACTER, strict=True))
    )


def _cut(text: str, width: float, per_character: float) -> str:
    most = int((width - 20) / per_character)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _tone(edge: Edge) -> str:
    return next((tone for tone, roles in TONES.items() if edge.role in roles), "terms")


def _said(edge: Edge, nodes: dict[str, Node]) -> str:
    return f"{label(nodes[edge.source])}: {edge.role} {label(nodes[edge.target])}"

"""Figures of the job page as geometry that its template draws: bars, lines and cells, in units of the drawing.

Drawn on the server, so that they are there without a script, grow with a job that runs, and need no inline style. The
report has larger ones of what is measured once a job is over.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Narrow, so that its words can be read on a telephone too.
WIDTH = 440
ROW, LETTER_WIDTH, VALUE_WIDTH = 24, 7, 60
MAX_BARS = 16
MAX_NAME = 26
LINE_HEIGHT, LEFT, BOTTOM, TOP = 190, 52, 28, 10
# As many as there are kinds of lines in the style.
KINDS = ("", "second", "third", "fourth")
MAX_POINTS = 400
NODE_WIDTH, ARC = 70, 30


@dataclass(frozen=True)
class Bar:
    name: str
    label: str
    y: float
    width: float
    value: float
    marked: bool


@dataclass(frozen=True)
class Bars:
    rows: Sequence[Bar]
    height: float
    left: float
    width: float = WIDTH


def bars(values: Sequence[tuple[str, float]], *, marked: Sequence[str] = ()) -> Bars | None:
    """Horizontal bars, the largest of them as long as there is room; None where there are none."""
    shown = values[:MAX_BARS]
    if not shown:
        return None
    largest = max(abs(value) for _, value in shown) or 1.0
    left = LETTER_WIDTH * max(len(_short(name)) for name, _ in shown) + 8
    room = WIDTH - left - VALUE_WIDTH
    rows = [
        Bar(name, _short(name), place * ROW, round(room * max(value, 0.0) / largest, 1), value, name in marked)
        for place, (name, value) in enumerate(shown)
    ]
    return Bars(rows, len(rows) * ROW, left)


def _short(name: str) -> str:
    # The end of a path says more than its beginning.
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


@dataclass(frozen=True)
class Line:
    name: str
    kind: str
    points: str
    last: float


@dataclass(frozen=True)
class Lines:
    """`y_ticks` are (place, value); the x axis ends at `x_last`."""

    lines: Sequence[Line]
    y_ticks: Sequence[tuple[float, float]]
    x_last: float
    left: float = LEFT
    bottom: float = LINE_HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = LINE_HEIGHT


def lines(series: Mapping[str, Sequence[tuple[float, float]]]) -> Lines | None:
    """Lines through points (x, y) over common axes, of the last series there are; None where nothing can be seen."""
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    shown = {name: _thinned(points) for name, points in finite.items() if len(points) > 1}
    shown = dict(list(shown.items())[-len(KINDS) :])
    if not shown:
        return None
    every = [point for points in shown.values() for point in points]
    x_last = max(x for x, _ in every) or 1.0
    low, high = min(y for _, y in every), max(y for _, y in every)
    span = (high - low) or 1.0
    right, bottom = WIDTH - 8, LINE_HEIGHT - BOTTOM

    def place(x: float, y: float) -> str:
        return f"{LEFT + (right - LEFT) * x / x_last:.1f},{bottom - (bottom - TOP) * (y - low) / span:.1f}"

    drawn = [
        Line(name, kind, " ".join(place(x, y) for x, y in points), points[-1][1])
        for (name, points), kind in zip(shown.items(), KINDS, strict=False)
    ]
    return Lines(drawn, [(TOP, high), ((TOP + bottom) / 2, low + span / 2), (bottom, low)], x_last)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = -(-len(points) // MAX_POINTS)
    return [*points[:-1:step], points[-1]]


@dataclass(frozen=True)
class Node:
    name: str
    x: float


@dataclass(frozen=True)
class Arc:
    operation: str
    path: str
    x: float
    y: float


@dataclass(frozen=True)
class Cell:
    """A found block: nodes from left to right, and above them an arc for each operation."""

    block: str
    nodes: Sequence[Node]
    arcs: Sequence[Arc]
    base: float
    words: str
    width: float = WIDTH
    node_width: float = NODE_WIDTH

    @property
    def height(self) -> float:
        """Of the whole drawing."""
        return self.base + 40


def cell(edit: Mapping[str, Any]) -> Cell:
    """The drawing of one edit of a genotype."""
    edges = edit["edges"]
    names = sorted({edge[end] for edge in edges for end in ("from", "to")}, key=_order)
    step = (WIDTH - NODE_WIDTH) / max(len(names) - 1, 1)
    x = {name: place * step for place, name in enumerate(names)}
    # Short arcs below long ones, each at a height of its own, so that no two names meet.
    ordered = sorted(edges, key=lambda edge: x[edge["to"]] - x[edge["from"]])
    base = ARC * (len(edges) + 1)
    arcs = []
    for level, edge in enumerate(ordered, start=1):
        start, end, y = x[edge["from"]] + NODE_WIDTH * 0.7, x[edge["to"]] + NODE_WIDTH * 0.3, base - level * ARC
        arcs.append(
            Arc(edge["operation"], f"M{start:.0f} {base} V{y} H{end:.0f} V{base - 4}", (start + end) / 2, y - 4)
        )
    words = "; ".join(f"{edge['operation']} from {edge['from']} to {edge['to']}" for edge in edges)
    return Cell(edit["block"], [Node(name, x[name]) for name in names], arcs, base, words)


def _order(node: str) -> tuple[int, int]:
    return ({"input": 0, "output": 2}.get(node, 1), int(node) if node.isdecimal() else 0)

"""A cell drawn as an SVG of its nodes and the operations between them."""

from collections.abc import Sequence
from html import escape

from archrepair_core.search.dag import Edge, node_order
from archrepair_core.search.genotype import Edit

_COLUMN, _ROW, _MARGIN, _NODE_WIDTH, _NODE_HEIGHT = 230, 34, 24, 64, 28
_STYLE = "font-family:system-ui,sans-serif;font-size:13px"


def draw_svg(edits: Sequence[Edit]) -> str:
    """The cells below one another: nodes from left to right, every edge an arc with its operation's name."""
    drawings, height, width = [], _MARGIN, 0
    for edit in edits:
        # Arcs fan out above the nodes, each at a height of its own, so that no two names meet.
        base = height + _ROW * (len(edit.edges) + 1)
        drawings += [f'<text x="{_MARGIN}" y="{height + 8}" font-weight="600">{escape(edit.block)}</text>']
        drawings += [_draw_edge(edge, _nodes(edit.edges), level, base) for level, edge in enumerate(_by_span(edit))]
        drawings += [_draw_node(node, place, base) for place, node in enumerate(_nodes(edit.edges))]
        height = base + _NODE_HEIGHT + 2 * _MARGIN
        width = max(width, 2 * _MARGIN + _NODE_WIDTH + _COLUMN * (len(_nodes(edit.edges)) - 1))
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>'
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    body = "\n".join(drawings)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{_STYLE}">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>{marker}\n{body}\n</svg>\n'
    )


def _nodes(edges: Sequence[Edge]) -> list[str]:
    return sorted({node for edge in edges for node in (edge.source, edge.target)}, key=node_order)


def _by_span(edit: Edit) -> list[Edge]:
    """Short arcs lie below long ones."""
    nodes = _nodes(edit.edges)
    return sorted(edit.edges, key=lambda edge: nodes.index(edge.target) - nodes.index(edge.source))


def _left(place: int) -> int:
    return _MARGIN + place * _COLUMN


def _draw_node(node: str, place: int, base: int) -> str:
    middle = _left(place) + _NODE_WIDTH // 2
    return (
        f'<rect x="{_left(place)}" y="{base}" width="{_NODE_WIDTH}" height="{_NODE_HEIGHT}" rx="6" fill="#eef3fb" '
        f'stroke="#356"/><text x="{middle}" y="{base + 19}" text-anchor="middle">{escape(node)}</text>'
    )


def _draw_edge(edge: Edge, nodes: Sequence[str], level: int, base: int) -> str:
    start = _left(nodes.index(edge.source)) + _NODE_WIDTH // 2 + 8
    end = _left(nodes.index(edge.target)) + _NODE_WIDTH // 2 - 8
    top = base - _ROW * (level + 1) + 12
    colour = "#b3541e" if edge.operation == "original" else "#555"
    return (
        f'<path d="M{start} {base}C{start} {top} {start} {top} {start + 24} {top}H{end - 24}C{end} {top} {end} {top} '
        f'{end} {base}" fill="none" stroke="{colour}" marker-end="url(#head)"/>'
        f'<text x="{(start + end) // 2}" y="{top - 4}" text-anchor="middle" fill="{colour}">'
        f"{escape(edge.operation)}</text>"
    )

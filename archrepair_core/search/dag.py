"""A small graph of operations as one module: nodes sum what their incoming edges give, `output` is the answer.

The forward is written per graph, as straight lines: TorchScript compiles it, and an archive of it is read back.
"""

import ast
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor, nn

from archrepair_core.errors import EngineError
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import assign, call, dotted, name

INPUT_NODE, OUTPUT_NODE = "input", "output"
_INTERMEDIATE = re.compile(r"[1-9][0-9]?")


@dataclass(frozen=True)
class Edge:
    """An operation, by name, from one node to a later one: `input`, `1`, `2`, …, `output`."""

    source: str
    target: str
    operation: str

    @property
    def module_name(self) -> str:
        """What the edge's module is called inside its graph."""
        return f"edge_{self.source}_{self.target}"


def node_order(node: str) -> int:
    """Where a node stands between `input` and `output`. Raises EngineError for anything that is no node."""
    if node in (INPUT_NODE, OUTPUT_NODE):
        return 0 if node == INPUT_NODE else 100
    if not _INTERMEDIATE.fullmatch(node):
        raise EngineError("bad_genotype", f"{node!r} is no node of a cell: those are input, 1 to 99, and output")
    return int(node)


def in_order(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """The edges in the order they can be computed. Raises EngineError for what is no graph from input to output."""
    for edge in edges:
        if node_order(edge.source) >= node_order(edge.target):
            raise EngineError("bad_genotype", f"an edge leads from {edge.source} to {edge.target}, which is not later")
    fed, used = {INPUT_NODE, *(edge.target for edge in edges)}, {OUTPUT_NODE, *(edge.source for edge in edges)}
    if OUTPUT_NODE not in fed or fed != used:
        raise EngineError(
            "bad_genotype", f"nodes {sorted(fed ^ used)} do not lie on a way from input to output", hint="drop them"
        )
    return tuple(sorted(edges, key=lambda edge: (node_order(edge.target), node_order(edge.source))))


class Dag(nn.Module):
    """Base of every graph: its edges are modules named `edge_SOURCE_TARGET`."""

    def __init__(self, operations: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for module_name, operation in operations.items():
            self.add_module(module_name, operation)


def make_dag(edges: Sequence[Edge], operations: Mapping[str, nn.Module]) -> nn.Module:
    """The module that computes `edges`, which come in order; `operations` holds one module by each `module_name`."""
    targets = list(dict.fromkeys(edge.target for edge in edges))
    sums = {target: _sum_into(target, edges) for target in targets}
    body = [assign(_local(target), sums[target]) for target in targets[:-1]]
    arguments = ast.arguments([], [ast.arg("self"), ast.arg("x", name(Tensor.__name__))], None, [], [], None, [])
    forward = ast.FunctionDef("forward", arguments, [*body, ast.Return(sums[OUTPUT_NODE])], [], name(Tensor.__name__))
    base = f"{Dag.__name__}_"
    kind = define(
        ast.ClassDef(Dag.__name__, [name(base)], [], [forward], []),
        f"archrepair_dag_{uuid.uuid4().hex[:12]}",
        f"__torch__.{Dag.__module__}.{Dag.__name__}",
        {base: Dag},
    )
    made: nn.Module = kind(operations)
    return made


def _sum_into(target: str, edges: Sequence[Edge]) -> ast.expr:
    terms = [
        call(dotted(f"self.{edge.module_name}"), name(_local(edge.source))) for edge in edges if edge.target == target
    ]
    return reduce(lambda left, right: ast.BinOp(left, ast.Add(), right), terms)


def _local(node: str) -> str:
    return "x" if node == INPUT_NODE else f"node_{node}"

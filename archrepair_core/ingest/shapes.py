"""Traces compute with shapes in 0-dimensional tensors; here is told which of those are really integers."""

import ast

import torch

from archrepair_core.ingest.graphs import Graph, Node, Value, is_constant, nodes_of
from archrepair_core.ingest.syntax import literal

_OPERATORS: dict[str, ast.operator] = {
    "aten::add": ast.Add(),
    "aten::sub": ast.Sub(),
    "aten::rsub": ast.Sub(),
    "aten::mul": ast.Mult(),
    "aten::floor_divide": ast.FloorDiv(),
    "aten::remainder": ast.Mod(),
}
_READERS = ("aten::Int", "aten::ScalarImplicit", "aten::IntImplicit")


def shape_scalars(graph: Graph) -> frozenset[str]:
    """Values that hold a 0-dimensional integer tensor and are only used as a number.

    Written as integers they need no tensor, and `torch.export` can follow them.
    """
    scalars: set[str] = set()
    for node in nodes_of(graph):
        if node.kind() == "prim::NumToTensor" or _is_integer_constant(node) or _combines(node, scalars):
            scalars.add(node.output().debugName())
    # A number that some tensor operator reads must stay a tensor, and so must what it is made from.
    while spoiled := {name for name in scalars if not _only_read_as_number(graph, name, scalars)}:
        scalars -= spoiled
    return frozenset(scalars)


def write_scalar(node: Node, inputs: list[ast.expr]) -> ast.expr:
    """The integer expression of a node whose output is a shape scalar."""
    if node.kind() == "prim::Constant":
        return literal(int(node.output().toIValue()))
    if node.kind() == "prim::NumToTensor":
        return inputs[0]
    operator = _OPERATORS[node.kind()]
    left, right = (inputs[1], inputs[0]) if node.kind() == "aten::rsub" else inputs[:2]
    return ast.BinOp(left, operator, right)


def _is_integer_constant(node: Node) -> bool:
    if node.kind() != "prim::Constant" or node.output().type().kind() != "TensorType":
        return False
    tensor = node.output().toIValue()
    return tensor.dim() == 0 and tensor.dtype == torch.int64


def _combines(node: Node, scalars: set[str]) -> bool:
    if node.kind() not in _OPERATORS or node.output().type().kind() != "TensorType":
        return False
    left, right, *alpha = list(node.inputs())
    integers = all(value.debugName() in scalars or value.type().kind() == "IntType" for value in (left, right))
    return integers and all(is_constant(value) and value.toIValue() == 1 for value in alpha)


def _only_read_as_number(graph: Graph, name: str, scalars: set[str]) -> bool:
    value = _named(graph, name)
    return value is not None and all(
        use.user.kind() in _READERS or (use.user.outputsSize() == 1 and use.user.output().debugName() in scalars)
        for use in value.uses()
    )


def _named(graph: Graph, name: str) -> Value | None:
    return next(
        (node.output() for node in nodes_of(graph) if node.outputsSize() == 1 and node.output().debugName() == name),
        None,
    )

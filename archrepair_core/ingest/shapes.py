"""Traces compute with shapes in 0-dimensional tensors; here is told which of those are really integers."""

import ast
from collections.abc import Mapping

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
    scalars: dict[str, Node] = {}
    for node in nodes_of(graph):
        if node.kind() == "prim::NumToTensor" or _combines(node, scalars):
            scalars[node.output().debugName()] = node
    # A number that some tensor operator reads must stay a tensor, and so must all it takes part in.
    while spoiled := [name for name, node in scalars.items() if not _is_number(node, scalars)]:
        for name in spoiled:
            del scalars[name]
    return frozenset(scalars)


def write_scalar(node: Node, inputs: list[ast.expr]) -> ast.expr:
    """The integer expression of a node whose output is a shape scalar."""
    if node.kind() == "prim::NumToTensor":
        return inputs[0]
    numbers = [
        literal(int(value.toIValue())) if _is_integer_constant(value) else expression
        for value, expression in zip(node.inputs(), inputs, strict=True)
    ]
    left, right = (numbers[1], numbers[0]) if node.kind() == "aten::rsub" else numbers[:2]
    return ast.BinOp(left, _OPERATORS[node.kind()], right)


def _is_integer_constant(value: Value) -> bool:
    if not is_constant(value) or value.type().kind() != "TensorType":
        return False
    tensor = value.toIValue()
    return tensor.dim() == 0 and tensor.dtype == torch.int64


def _combines(node: Node, scalars: Mapping[str, Node]) -> bool:
    if node.kind() not in _OPERATORS or node.output().type().kind() != "TensorType":
        return False
    left, right, *alpha = list(node.inputs())
    known = any(value.debugName() in scalars for value in (left, right))
    plain = all(is_constant(value) and value.toIValue() == 1 for value in alpha)
    return known and plain and _is_integer(left, scalars) and _is_integer(right, scalars)


def _is_integer(value: Value, scalars: Mapping[str, Node]) -> bool:
    return value.debugName() in scalars or value.type().kind() == "IntType" or _is_integer_constant(value)


def _is_number(node: Node, scalars: Mapping[str, Node]) -> bool:
    made_of_numbers = node.kind() == "prim::NumToTensor" or _combines(node, scalars)
    return made_of_numbers and all(
        use.user.kind() in _READERS or (use.user.outputsSize() == 1 and use.user.output().debugName() in scalars)
        for use in node.output().uses()
    )

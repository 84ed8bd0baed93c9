"""Attributes and calls: how a method reaches what its module holds, and the archive's other functions."""

import ast
from collections.abc import Callable
from types import MappingProxyType

from archrepair_core.ingest.graphs import Node, is_module
from archrepair_core.ingest.operators import UnsupportedNodeError
from archrepair_core.ingest.scope import Body
from archrepair_core.ingest.syntax import assign, call, is_identifier, member, name, property_of

# Methods that Python calls for a piece of its own syntax.
_SPECIAL: MappingProxyType[str, Callable[[ast.expr, list[ast.expr]], ast.expr]] = MappingProxyType(
    {
        "__contains__": lambda owner, inputs: ast.Compare(inputs[0], [ast.In()], [owner]),
        "__len__": lambda owner, _: call(name("len"), owner),
    }
)


def get_attribute(node: Node, body: Body) -> list[ast.stmt]:
    """`self.x`: written where it is used, or held in a local where a method writes to it."""
    value, attribute = node.output(), node.s("name")
    expression = member(body.read(node.input()), attribute)
    if isinstance(body.read(node.input()), ast.Name) and attribute in body.scope.tensor_lists:
        held = [member(body.read(node.input()), tensor) for tensor in body.scope.tensor_lists[attribute]]
        return [assign(body.bind(value), ast.List(held, ast.Load()))]
    own = isinstance(body.read(node.input()), ast.Name)
    if own and not is_module(value) and attribute != "training":
        body.scope.attribute_types[attribute] = value.type()
    if own and attribute in body.scope.written_attributes:
        return [assign(body.bind(value), expression)]
    body.values[value.debugName()] = expression
    return []


def set_attribute(node: Node, body: Body) -> list[ast.stmt]:
    """`self.x = value`."""
    target, value = node.inputs()
    attribute = node.s("name")
    if not is_identifier(attribute):
        raise UnsupportedNodeError(f"prim::SetAttr of {attribute!r}")
    expression = ast.Attribute(body.read(target), attribute, ast.Store())
    return [ast.Assign([expression], body.read(value))]


def call_method(node: Node, body: Body) -> list[ast.stmt]:
    """A call of a child, of the module's own method, or of what Python spells as syntax or a property."""
    owner, *values = node.inputs()
    if not is_module(owner):
        raise UnsupportedNodeError(f"prim::CallMethod on {owner.type().annotation_str}")
    output = node.output()
    if owner.node().kind() == "prim::CreateObject":
        body.values[output.debugName()] = ast.Constant(None)
        return []
    if not values and output.type().kind() == "NoneType" and not isinstance(body.read(owner), ast.Name):
        # What is left of an identity in a trace: it takes nothing and gives nothing.
        body.values[output.debugName()] = ast.Constant(None)
        return []
    inputs = [body.read(value) for value in values]
    attribute = property_of(node.s("name"))
    if attribute is not None:
        return [assign(body.bind(output), member(body.read(owner), attribute))]
    if node.s("name") in _SPECIAL:
        return [assign(body.bind(output), _SPECIAL[node.s("name")](body.read(owner), inputs))]
    method = body.scope.method_alias(owner.type().annotation_str, node.s("name"))
    is_child = not isinstance(body.read(owner), ast.Name)
    function = body.read(owner) if is_child and method == "forward" else member(body.read(owner), method)
    return _call(node, call(function, *inputs), body)


def call_function(node: Node, body: Body) -> list[ast.stmt]:
    """A call of a free function of the archive, which is written when first called."""
    function, *values = node.inputs()
    identifier = body.scope.function_name(function.type().annotation_str, body.scope)
    return _call(node, call(name(identifier), *[body.read(value) for value in values]), body)


def _call(node: Node, expression: ast.expr, body: Body) -> list[ast.stmt]:
    value = node.output()
    if value.type().kind() == "NoneType":
        body.values[value.debugName()] = ast.Constant(None)
        return [ast.Expr(expression)]
    return [assign(body.bind(value), expression)]

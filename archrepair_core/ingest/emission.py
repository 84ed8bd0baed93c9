"""One method of an archive, written as a Python function that is also valid TorchScript."""

import ast
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from archrepair_core.ingest import operators
from archrepair_core.ingest.annotations import UnsupportedTypeError, annotation, is_named_tuple
from archrepair_core.ingest.aten import is_tensor_operator, spell, takes_tensors, training_flag
from archrepair_core.ingest.casts import write_cast, write_isinstance
from archrepair_core.ingest.fused import FUSED
from archrepair_core.ingest.graphs import Block, Graph, Node, Value, block_uses, is_constant, is_function
from archrepair_core.ingest.members import call_function, call_method, get_attribute, set_attribute
from archrepair_core.ingest.operators import UnsupportedNodeError
from archrepair_core.ingest.scope import Body, Scope
from archrepair_core.ingest.shapes import shape_scalars, write_scalar
from archrepair_core.ingest.syntax import (
    assign,
    assign_all,
    call,
    dotted,
    is_identifier,
    literal,
    member,
    name,
)

_MAX_TRIPS = 2**31 - 1
_MAX_LITERAL_ELEMENTS = 16
_UNWRITABLE = (UnsupportedNodeError, UnsupportedTypeError, TypeError)
# Written where they are used: they only name values, so a later evaluation gives the same.
_INLINE = ("prim::ListConstruct", "prim::TupleConstruct")


def write_function(identifier: str, graph: Graph, schema: Any, scope: Scope) -> ast.FunctionDef:
    """The definition of one method (first argument `self`) or function of the archive.

    What cannot be written is noted in `scope.problems` and leaves `None` in its place.
    """
    body = Body(scope, shape_scalars(graph))
    parameters = _parameters(graph, schema, body)
    statements = _block(graph, body)
    returns = schema.returns[0].type
    if not _raises(statements):
        statements.append(ast.Return(body.read_as(next(iter(graph.outputs())), returns)))
    return ast.FunctionDef(
        name=identifier, args=parameters, body=statements, decorator_list=[], returns=_annotation(returns, scope)
    )


def _parameters(graph: Graph, schema: Any, body: Body) -> ast.arguments:
    inputs, arguments = list(graph.inputs()), list(schema.arguments)
    parameters, defaults = [], list[ast.expr]()
    if body.scope.is_method:
        body.values[inputs.pop(0).debugName()] = name("self")
        arguments.pop(0)
        parameters.append(ast.arg("self"))
    for value, argument in zip(inputs, arguments, strict=True):
        if not is_identifier(argument.name) or argument.name == "self":
            body.scope.report(f"argument name {argument.name!r}")
            continue
        body.taken.add(argument.name)
        body.values[value.debugName()] = name(argument.name)
        parameters.append(ast.arg(argument.name, _annotation(argument.type, body.scope)))
        defaults = _with_default(defaults, argument) if body.scope.is_method else []
        if body.device_source is None and argument.type.kind() == "TensorType":
            body.device_source = member(name(argument.name), "device")
    return ast.arguments(posonlyargs=[], args=parameters, kwonlyargs=[], kw_defaults=[], defaults=defaults)


def _annotation(jit_type: Any, scope: Scope) -> ast.expr:
    try:
        return annotation(jit_type)
    except UnsupportedTypeError as error:
        scope.report(str(error))
        return ast.Constant(None)


def _with_default(defaults: list[ast.expr], argument: Any) -> list[ast.expr]:
    # TorchScript refuses mutable defaults, though its archives hold some; Python wants none before such an argument.
    value = argument.default_value if argument.has_default_value() else []
    return [] if isinstance(value, list | dict) else [*defaults, literal(value)]


def _block(block: Block, body: Body) -> list[ast.stmt]:
    statements: list[ast.stmt] = []
    outer: list[list[ast.stmt]] = []
    uses = block_uses(block)
    for node in block.nodes():
        if node.kind() == "prim::Enter":
            outer.append(statements)
            statements = []
            continue
        if node.kind() == "prim::Exit":
            statements = _without_gradient(outer.pop(), statements)
            continue
        try:
            statements += _node(node, body, uses)
        except _UNWRITABLE as error:
            body.scope.report(str(error))
            for value in node.outputs():
                body.values[value.debugName()] = ast.Constant(None)
        if _raises(statements):
            break
    for before in reversed(outer):  # what raises inside a context never leaves it
        statements = _without_gradient(before, statements)
    return statements


def _without_gradient(before: list[ast.stmt], inside: list[ast.stmt]) -> list[ast.stmt]:
    item = ast.withitem(call(dotted("torch.no_grad")), None)
    return [*before, ast.With([item], inside)] if inside else before


def _context(node: Node, body: Body) -> list[ast.stmt]:
    """The object behind a `with`: torch.no_grad is the only class the gate lets through."""
    body.values[node.output().debugName()] = ast.Constant(None)
    return []


def _node(node: Node, body: Body, uses: Counter[str]) -> list[ast.stmt]:
    kind = node.kind()
    if kind in _STRUCTURES:
        return _STRUCTURES[kind](node, body)
    inputs = [body.read(value) for value in node.inputs()]
    if kind in operators.STATEMENTS and not is_tensor_operator(node):
        for value in node.outputs():
            body.values[value.debugName()] = inputs[0]
        return [operators.STATEMENTS[kind](node, inputs)]
    if node.outputsSize() == 1 and node.output().debugName() in body.scalars:
        return _hold(node.output(), write_scalar(node, inputs), body)
    if kind in ("prim::TupleUnpack", "prim::ListUnpack") or node.outputsSize() > 1:
        return _unpack(node, inputs, body)
    expression = _expression(node, inputs, body)
    if kind in _INLINE and _used_once_here(node.output(), uses):
        body.values[node.output().debugName()] = expression
        return []
    return _hold(node.output(), expression, body)


def _hold(value: Value, expression: ast.expr, body: Body) -> list[ast.stmt]:
    if isinstance(expression, ast.Name | ast.Constant):
        body.values[value.debugName()] = expression
        return []
    return [assign(body.bind(value), expression)]


def _used_once_here(value: Value, uses: Counter[str]) -> bool:
    return uses[value.debugName()] == 1 and len(value.uses()) == 1


def _expression(node: Node, inputs: list[ast.expr], body: Body) -> ast.expr:
    kind = node.kind()
    if kind in operators.ANY:
        if kind in ("aten::Int", "aten::ScalarImplicit") and node.input().debugName() in body.scalars:
            return inputs[0]
        return operators.ANY[kind](node, inputs)
    if kind in operators.SCALARS and not takes_tensors(node):
        return operators.SCALARS[kind](node, inputs)
    if is_tensor_operator(node):
        return spell(node, _relinked(node, inputs, body))
    raise UnsupportedNodeError(kind)


def _relinked(node: Node, inputs: list[ast.expr], body: Body) -> list[ast.expr]:
    # A trace made in eval mode holds training=False as a constant: give the flag back to the module. A constant True
    # stays: whoever wrote it (or traced in train mode) deployed a model that behaves so.
    position = training_flag(node)
    if position is None or not body.scope.is_method:
        return inputs
    flag = list(node.inputs())[position]
    if is_constant(flag) and flag.toIValue() is False:
        return [*inputs[:position], dotted("self.training"), *inputs[position + 1 :]]
    return inputs


def _unpack(node: Node, inputs: list[ast.expr], body: Body) -> list[ast.stmt]:
    unpacks = node.kind() in ("prim::TupleUnpack", "prim::ListUnpack")
    source = inputs[0] if unpacks else _expression(node, inputs, body)
    targets = [body.bind(value) for value in node.outputs()]
    return [assign_all(targets, source)] if targets else []


def _constant(node: Node, body: Body) -> list[ast.stmt]:
    value = node.output()
    if is_function(value):
        return []
    constant = value.toIValue()
    if isinstance(constant, torch.device) and body.device_source is not None:
        # A traced device is the one of the machine it was traced on.
        expression = body.device_source
    elif isinstance(constant, torch.Tensor):
        expression = _tensor_constant(constant, body)
    else:
        expression = _literal_of(constant, value.type())
    body.values[value.debugName()] = expression
    return []


def _literal_of(constant: Any, jit_type: Any) -> ast.expr:
    if jit_type.kind() != "TupleType":
        return literal(constant)
    items = [_literal_of(item, inner) for item, inner in zip(constant, jit_type.elements(), strict=True)]
    return call(annotation(jit_type), *items) if is_named_tuple(jit_type) else ast.Tuple(items, ast.Load())


def _tensor_constant(tensor: torch.Tensor, body: Body) -> ast.expr:
    if tensor.numel() <= _MAX_LITERAL_ELEMENTS and tensor.dtype in (
        torch.float32,
        torch.float64,
        torch.int64,
        torch.bool,
    ):
        return call(dotted("torch.tensor"), literal(tensor.tolist()), dtype=dotted(str(tensor.dtype)))
    if not body.scope.is_method:
        raise UnsupportedNodeError("prim::Constant holding a large tensor, in a function")
    attribute = f"_constant_{len(body.scope.constants)}"
    body.scope.constants[attribute] = tensor
    return dotted(f"self.{attribute}")


def _if(node: Node, body: Body) -> list[ast.stmt]:
    condition = body.read(node.input())
    arms = list(node.blocks())
    if isinstance(condition, ast.Constant):
        return _only_arm(node, arms[0] if condition.value else arms[1], body)
    targets = [body.fresh(value.debugName()) for value in node.outputs()]
    taken, other = (_arm(node, arm, targets, body) for arm in arms)
    for target, value in zip(targets, node.outputs(), strict=True):
        body.values[value.debugName()] = name(target)
    if not taken and not other:
        return []
    if not taken:
        return [ast.If(ast.UnaryOp(ast.Not(), condition), other, [])]
    return [ast.If(condition, taken, other)]


def _only_arm(node: Node, arm: Block, body: Body) -> list[ast.stmt]:
    statements = _block(arm, body)
    if not _raises(statements):
        for value, result in zip(node.outputs(), arm.outputs(), strict=True):
            body.values[value.debugName()] = body.read(result)
    return statements


def _arm(node: Node, arm: Block, targets: list[str], body: Body) -> list[ast.stmt]:
    statements = _block(arm, body)
    if _raises(statements):
        return statements
    for target, value, result in zip(targets, node.outputs(), arm.outputs(), strict=True):
        statements.append(assign(target, body.read_as(result, value.type())))
    return statements


def _raises(statements: list[ast.stmt]) -> bool:
    last = statements[-1] if statements else None
    return isinstance(last, ast.Raise) or (isinstance(last, ast.With) and _raises(last.body))


def _loop(node: Node, body: Body) -> list[ast.stmt]:
    trips, condition, *initial = node.inputs()
    (block,) = node.blocks()
    counter, *carried = block.inputs()
    goes_on, *updated = block.outputs()
    before: list[ast.stmt] = []
    locals_ = []
    for value, start in zip(carried, initial, strict=True):
        expression = body.read_as(start, value.type())
        locals_.append(body.bind(value))
        before.append(assign(locals_[-1], expression))
    is_for = _is_true(condition) and _is_true(goes_on)
    index = body.bind(counter)
    flag = None if is_for else body.fresh("goes_on")
    if flag is not None:
        before += [assign(flag, body.read(condition)), assign(index, ast.Constant(0))]
    inner = _block(block, body)
    if not _raises(inner):
        targets = [*locals_, *([flag] if flag else [])]
        values = [body.read_as(new, old.type()) for new, old in zip(updated, carried, strict=True)]
        values += [body.read(goes_on)] if flag else []
        inner += _reassigned(targets, values)
    for value, local in zip(node.outputs(), locals_, strict=True):
        body.values[value.debugName()] = name(local)
    if flag is None:
        return [*before, _for(index, body.read(trips), inner)]
    return [*before, _while(flag, index, trips, inner, body)]


def _is_true(value: Value) -> bool:
    return is_constant(value) and value.toIValue() is True


def _reassigned(targets: list[str], values: list[ast.expr]) -> list[ast.stmt]:
    if len(targets) == 1:
        return [assign(targets[0], values[0])]
    return [assign_all(targets, ast.Tuple(values, ast.Load()))] if targets else []


def _for(index: str, trips: ast.expr, inner: list[ast.stmt]) -> ast.stmt:
    return ast.For(ast.Name(index, ast.Store()), call(name("range"), trips), inner or [ast.Pass()], [])


def _while(flag: str, index: str, trips: Value, inner: list[ast.stmt], body: Body) -> ast.stmt:
    condition: ast.expr = name(flag)
    if not (is_constant(trips) and trips.toIValue() >= _MAX_TRIPS):
        below = ast.Compare(name(index), [ast.Lt()], [body.read(trips)])
        condition = ast.BoolOp(ast.And(), [condition, below])
    step = assign(index, ast.BinOp(name(index), ast.Add(), ast.Constant(1)))
    return ast.While(condition, [*inner, step], [])


_STRUCTURES: Mapping[str, Callable[[Node, Body], list[ast.stmt]]] = {
    **FUSED,
    "prim::CallFunction": call_function,
    "prim::CallMethod": call_method,
    "prim::Constant": _constant,
    "prim::CreateObject": _context,
    "prim::GetAttr": get_attribute,
    "prim::If": _if,
    "prim::Loop": _loop,
    "prim::SetAttr": set_attribute,
    "prim::isinstance": write_isinstance,
    "prim::unchecked_cast": write_cast,
}

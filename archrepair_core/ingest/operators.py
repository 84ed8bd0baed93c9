"""IR node kind → the Python expression or statement that computes it; control flow is in `emission.py`.

Every entry is a function of the node and the expressions of its inputs. Operators on tensors that have no entry are
spelled by their schema (`aten.py`); anything else is not supported.
"""

import ast
import builtins
from collections.abc import Callable
from types import MappingProxyType

from archrepair_core.ingest.annotations import annotation, is_named_tuple, same_type
from archrepair_core.ingest.aten import dtype_literal, num_arguments
from archrepair_core.ingest.graphs import Node, is_constant
from archrepair_core.ingest.syntax import call, dotted, literal, member, name, subscript

Write = Callable[[Node, list[ast.expr]], ast.expr]


class UnsupportedNodeError(Exception):
    """A node that the generated source cannot express; the message is its kind and why."""


def annotated(expression: ast.expr, jit_type: object) -> ast.expr:
    """`torch.jit.annotate(T, expression)`: the expression itself in eager, a typed one in TorchScript."""
    return call(dotted("torch.jit.annotate"), annotation(jit_type), expression)


def _binary(operator: ast.operator) -> Write:
    return lambda _, inputs: ast.BinOp(inputs[0], operator, inputs[1])


def _compare(operator: ast.cmpop) -> Write:
    return lambda _, inputs: ast.Compare(inputs[0], [operator], [inputs[1]])


def _equality(operator: ast.cmpop) -> Write:
    def write(node: Node, inputs: list[ast.expr]) -> ast.expr:
        values = list(node.inputs())
        if any(value.node().kind() == "prim::dtype" for value in values):
            # In TorchScript a dtype is a number, in Python it equals none.
            inputs = [dtype_literal(value) or expression for value, expression in zip(values, inputs, strict=True)]
        return ast.Compare(inputs[0], [operator], [inputs[1]])

    return write


def _unary(operator: ast.unaryop) -> Write:
    return lambda _, inputs: ast.UnaryOp(operator, inputs[0])


def _calls(path: str) -> Write:
    return lambda _, inputs: call(dotted(path), *inputs)


def _method(attribute: str) -> Write:
    return lambda _, inputs: call(member(inputs[0], attribute), *inputs[1:])


def _method_with_defaults(attribute: str) -> Write:
    # Written out they would mean something else: TorchScript's default end of a string is -1.
    return lambda node, inputs: call(member(inputs[0], attribute), *inputs[1 : num_arguments(node)])


def _property(attribute: str) -> Write:
    return lambda _, inputs: member(inputs[0], attribute)


def _percent_format(_: Node, inputs: list[ast.expr]) -> ast.expr:
    return ast.BinOp(inputs[0], ast.Mod(), inputs[1] if len(inputs) == 2 else ast.Tuple(inputs[1:], ast.Load()))


def _item(_: Node, inputs: list[ast.expr]) -> ast.expr:
    return subscript(inputs[0], inputs[1])


def _contains(_: Node, inputs: list[ast.expr]) -> ast.expr:
    return ast.Compare(inputs[1], [ast.In()], [inputs[0]])


def _list_slice(_: Node, inputs: list[ast.expr]) -> ast.expr:
    return subscript(inputs[0], ast.Slice(*inputs[1:]))


def _size(_: Node, inputs: list[ast.expr]) -> ast.expr:
    size = call(member(inputs[0], "size"), *inputs[1:])
    # torch.Size is no list: it does not concatenate with one.
    return size if len(inputs) == 2 else call(name("list"), size)


def _list(node: Node, inputs: list[ast.expr]) -> ast.expr:
    jit_type = node.output().type()
    element = jit_type.getElementType()
    written = ast.List(inputs, ast.Load())
    plain = inputs and element.kind() != "OptionalType" and element.kind() != "UnionType"
    return written if plain else annotated(written, jit_type)


def _tuple(node: Node, inputs: list[ast.expr]) -> ast.expr:
    jit_type = node.output().type()
    return call(annotation(jit_type), *inputs) if is_named_tuple(jit_type) else ast.Tuple(inputs, ast.Load())


def _dict(node: Node, inputs: list[ast.expr]) -> ast.expr:
    written = ast.Dict(list(inputs[0::2]), list(inputs[1::2]))
    return annotated(written, node.output().type())


def _number(function: str) -> Write:
    def write(node: Node, inputs: list[ast.expr]) -> ast.expr:
        # Python warns when a tensor with a gradient becomes a number.
        is_tensor = next(node.inputs()).type().kind() == "TensorType"
        return call(name(function), call(member(inputs[0], "detach")) if is_tensor else inputs[0])

    return write


def _tuple_item(node: Node, inputs: list[ast.expr]) -> ast.expr:
    index = list(node.inputs())[1]
    if not is_constant(index):
        raise UnsupportedNodeError("prim::TupleIndex with a computed index")
    return subscript(inputs[0], literal(index.toIValue()))


def _tuple_slice(node: Node, inputs: list[ast.expr]) -> ast.expr:
    first, last = (literal(node.i(bound)) for bound in ("beg", "end"))
    return subscript(inputs[0], ast.Slice(first, last))


def _unwrap(node: Node, inputs: list[ast.expr]) -> ast.expr:
    source = node.input().type()
    if same_type(source, node.output().type()):
        return inputs[0]
    assert source.kind() == "OptionalType", "other casts are written by emission"
    return call(dotted("torch.jit._unwrap_optional"), inputs[0])


def _uninitialized(node: Node, _: list[ast.expr]) -> ast.expr:
    return _default(node.output().type())


def _default(jit_type: object) -> ast.expr:
    """Any value of a type: TorchScript never reads an uninitialized one, Python only wants it bound."""
    kind = jit_type.kind()  # type: ignore[attr-defined]
    if kind in _DEFAULTS:
        return _DEFAULTS[kind]()
    if kind == "TupleType":
        items = [_default(item) for item in jit_type.elements()]  # type: ignore[attr-defined]
        return call(annotation(jit_type), *items) if is_named_tuple(jit_type) else ast.Tuple(items, ast.Load())
    if kind in ("OptionalType", "ListType", "DictType"):
        empty = {"OptionalType": ast.Constant(None), "ListType": ast.List([], ast.Load()), "DictType": ast.Dict([], [])}
        return annotated(empty[kind], jit_type)
    raise UnsupportedNodeError(f"prim::Uninitialized of type {jit_type.annotation_str}")  # type: ignore[attr-defined]


_DEFAULTS: dict[str, Callable[[], ast.expr]] = {
    "TensorType": lambda: call(dotted("torch.empty"), ast.Constant(0)),
    "IntType": lambda: ast.Constant(0),
    "FloatType": lambda: ast.Constant(0.0),
    "BoolType": lambda: ast.Constant(False),
    "StringType": lambda: ast.Constant(""),
    "NoneType": lambda: ast.Constant(None),
    "DeviceObjType": lambda: call(dotted("torch.device"), ast.Constant("cpu")),
}


def _derived_index(_: Node, inputs: list[ast.expr]) -> ast.expr:
    index, start, step = inputs
    return ast.BinOp(start, ast.Add(), ast.BinOp(index, ast.Mult(), step))


def _range_length(node: Node, inputs: list[ast.expr]) -> ast.expr:
    step = list(node.inputs())[2]
    if not is_constant(step) or step.toIValue() == 0:
        raise UnsupportedNodeError("aten::__range_length with a computed step")
    width = ast.BinOp(inputs[1], ast.Sub(), inputs[0])
    # -(-width // step) is the division that rounds up, for either sign of the step.
    rounded = ast.BinOp(ast.UnaryOp(ast.USub(), width), ast.FloorDiv(), inputs[2])
    return call(name("max"), ast.UnaryOp(ast.USub(), rounded), ast.Constant(0))


def _list_with_default(_: Node, inputs: list[ast.expr]) -> ast.expr:
    return inputs[0]


# What the operator means when none of its arguments is a tensor.
SCALARS: MappingProxyType[str, Write] = MappingProxyType(
    {
        "aten::add": _binary(ast.Add()),
        "aten::sub": _binary(ast.Sub()),
        "aten::mul": _binary(ast.Mult()),
        "aten::div": _binary(ast.Div()),
        "aten::floordiv": _binary(ast.FloorDiv()),
        "aten::remainder": _binary(ast.Mod()),
        "aten::pow": _binary(ast.Pow()),
        "aten::neg": _unary(ast.USub()),
        "aten::eq": _equality(ast.Eq()),
        "aten::ne": _equality(ast.NotEq()),
        "aten::lt": _compare(ast.Lt()),
        "aten::le": _compare(ast.LtE()),
        "aten::gt": _compare(ast.Gt()),
        "aten::ge": _compare(ast.GtE()),
        "aten::__and__": _binary(ast.BitAnd()),
        "aten::__or__": _binary(ast.BitOr()),
        "aten::slice": _list_slice,
        "aten::sqrt": _calls("math.sqrt"),
        "aten::exp": _calls("math.exp"),
        "aten::log": _calls("math.log"),
        "aten::floor": _calls("math.floor"),
        "aten::ceil": _calls("math.ceil"),
        # TorchScript rounds to a float, Python to an integer.
        "aten::round": lambda _, inputs: call(name("float"), call(name("round"), *inputs)),
        "aten::abs": _calls("abs"),
        "aten::all": _calls("all"),
        "aten::any": _calls("any"),
        "aten::copy": _method("copy"),
        "aten::sum": _calls("sum"),
        **{
            f"aten::{method}": _method_with_defaults(method)
            for method in (
                *("count", "endswith", "find", "get", "index", "join", "lower", "replace", "setdefault", "split"),
                *("startswith", "strip", "upper"),
            )
        },
        "aten::ord": _calls("ord"),
        "aten::__xor__": _binary(ast.BitXor()),
        "aten::__lshift__": _binary(ast.LShift()),
        "aten::__rshift__": _binary(ast.RShift()),
        "aten::mathremainder": _calls("math.remainder"),
        "aten::log10": _calls("math.log10"),
        "aten::sorted": _calls("sorted"),
    }
)

ANY: MappingProxyType[str, Write] = MappingProxyType(
    {
        "aten::__is__": _compare(ast.Is()),
        "aten::__isnot__": _compare(ast.IsNot()),
        "aten::__not__": _unary(ast.Not()),
        "aten::__contains__": _contains,
        "aten::__getitem__": _item,
        "aten::__derive_index": _derived_index,
        "aten::__range_length": _range_length,
        "aten::Bool": _calls("bool"),
        "aten::Float": _number("float"),
        "aten::Int": _number("int"),
        "aten::FloatImplicit": _number("float"),
        "aten::IntImplicit": _number("int"),
        "aten::ScalarImplicit": _method("item"),
        "aten::_unwrap_optional": _calls("torch.jit._unwrap_optional"),
        "aten::dim": _method("dim"),
        "aten::format": _method("format"),
        "aten::items": lambda _, inputs: call(name("list"), call(member(inputs[0], "items"))),
        "aten::keys": lambda _, inputs: call(name("list"), call(member(inputs[0], "keys"))),
        "aten::len": _calls("len"),
        "aten::list": _calls("list"),
        "aten::list_with_default": _list_with_default,
        "aten::pop": _method("pop"),
        "aten::size": _size,
        "aten::percentFormat": _percent_format,
        "aten::str": _calls("str"),
        "aten::values": lambda _, inputs: call(name("list"), call(member(inputs[0], "values"))),
        "prim::DictConstruct": _dict,
        "prim::ListConstruct": _list,
        "prim::NumToTensor": _calls("torch.tensor"),
        "prim::TupleConstruct": _tuple,
        "prim::EnumValue": lambda _, inputs: inputs[0],
        "prim::TupleIndex": _tuple_item,
        "prim::TupleSlice": _tuple_slice,
        "prim::Uninitialized": _uninitialized,
        "prim::abs": _calls("abs"),
        "prim::device": _property("device"),
        "prim::dtype": _property("dtype"),
        "prim::is_cuda": _property("is_cuda"),
        "prim::is_nested": _property("is_nested"),
        "prim::type": _property("type"),
        "prim::data": _property("data"),
        "prim::layout": _property("layout"),
        "aten::is_grad_enabled": _calls("torch.is_grad_enabled"),
        "aten::is_autocast_enabled": _calls("torch.is_autocast_enabled"),
        "prim::max": _calls("max"),
        "prim::min": _calls("min"),
        "prim::requires_grad": _property("requires_grad"),
        "prim::unchecked_cast": _unwrap,
    }
)

# Called for what they do: the result, if any, is their first argument.
_LIST_METHODS = ("append", "clear", "extend", "insert", "remove", "reverse", "update")


def _delete(_: Node, inputs: list[ast.expr]) -> ast.stmt:
    return ast.Delete([ast.Subscript(inputs[0], inputs[1], ast.Del())])


def _set_item(_: Node, inputs: list[ast.expr]) -> ast.stmt:
    return ast.Assign([ast.Subscript(inputs[0], inputs[1], ast.Store())], inputs[2])


def _statement(attribute: str) -> Callable[[Node, list[ast.expr]], ast.stmt]:
    return lambda _, inputs: ast.Expr(call(member(inputs[0], attribute), *inputs[1:]))


def _warn(_: Node, inputs: list[ast.expr]) -> ast.stmt:
    return ast.Expr(call(dotted("warnings.warn"), inputs[0]))


def _raise(node: Node, inputs: list[ast.expr]) -> ast.stmt:
    return ast.Raise(call(name(_exception_name(node)), inputs[0]))


def _exception_name(node: Node) -> str:
    # The archive names the class; only Python's own are taken over.
    named = [value.toIValue() for value in list(node.inputs())[1:] if is_constant(value)]
    candidate = named[0].rpartition("builtins.")[2] if named and isinstance(named[0], str) else ""
    found = getattr(builtins, candidate, None)
    return candidate if isinstance(found, type) and issubclass(found, Exception) else "RuntimeError"


STATEMENTS: MappingProxyType[str, Callable[[Node, list[ast.expr]], ast.stmt]] = MappingProxyType(
    {
        "aten::Delete": _delete,
        "aten::sort": lambda _, inputs: ast.Expr(call(member(inputs[0], "sort"), reverse=inputs[1])),
        "aten::_set_item": _set_item,
        # Of lists; on tensors it is an operator.
        "aten::add_": _statement("extend"),
        "aten::warn": _warn,
        "prim::RaiseException": _raise,
        **{f"aten::{method}": _statement(method) for method in _LIST_METHODS},
    }
)

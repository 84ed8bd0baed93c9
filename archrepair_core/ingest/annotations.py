"""TorchScript types as Python annotations."""

import ast
from collections.abc import Callable
from typing import Any

from archrepair_core.ingest.syntax import dotted, name, subscript


class UnsupportedTypeError(Exception):
    """A type of the archive that the generated source cannot name."""


def annotation(jit_type: Any) -> ast.expr:
    """The annotation of a TorchScript type, valid for eager Python and for `torch.jit.script`.

    Raises UnsupportedTypeError with the type's name (classes of the archive, futures, ...).
    """
    write = _TYPES.get(jit_type.kind())
    if write is None or _is_named_tuple(jit_type):
        raise UnsupportedTypeError(f"type {jit_type.annotation_str}")
    return write(jit_type)


def same_type(first: Any, second: Any) -> bool:
    return first.annotation_str == second.annotation_str


def _is_named_tuple(jit_type: Any) -> bool:
    return jit_type.kind() == "TupleType" and not jit_type.annotation_str.startswith("Tuple[")


def _tuple(items: list[ast.expr]) -> ast.expr:
    return ast.Tuple(items, ast.Load())


def _plain(path: str) -> Callable[[Any], ast.expr]:
    return lambda _: dotted(path)


def _tuple_annotation(jit_type: Any) -> ast.expr:
    items = [annotation(item) for item in jit_type.elements()]
    return subscript(name("Tuple"), _tuple(items))


def _dict_annotation(jit_type: Any) -> ast.expr:
    return subscript(name("Dict"), _tuple([annotation(jit_type.getKeyType()), annotation(jit_type.getValueType())]))


def _union_annotation(jit_type: Any) -> ast.expr:
    return subscript(name("Union"), _tuple([annotation(item) for item in jit_type.containedTypes()]))


_TYPES: dict[str, Callable[[Any], ast.expr]] = {
    "TensorType": _plain("Tensor"),
    "IntType": _plain("int"),
    "FloatType": _plain("float"),
    "BoolType": _plain("bool"),
    "StringType": _plain("str"),
    "NoneType": lambda _: ast.Constant(None),
    "DeviceObjType": _plain("torch.device"),
    "AnyType": _plain("Any"),
    "NumberType": lambda _: subscript(name("Union"), _tuple([name("int"), name("float")])),
    "OptionalType": lambda t: subscript(name("Optional"), annotation(t.getElementType())),
    "ListType": lambda t: subscript(name("List"), annotation(t.getElementType())),
    "TupleType": _tuple_annotation,
    "DictType": _dict_annotation,
    "UnionType": _union_annotation,
}

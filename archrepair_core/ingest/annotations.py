"""TorchScript types as Python annotations."""

import ast
import hashlib
import re
from collections.abc import Callable
from typing import Any

from archrepair_core.ingest.syntax import TYPE_PREFIX, dotted, name, subscript


class UnsupportedTypeError(Exception):
    """A type of the archive that the generated source cannot name."""


def annotation(jit_type: Any) -> ast.expr:
    """The annotation of a TorchScript type, valid for eager Python and for `torch.jit.script`.

    Raises UnsupportedTypeError with the type's name (classes of the archive, futures, ...).
    """
    write = _TYPES.get(jit_type.kind())
    if write is None:
        raise UnsupportedTypeError(f"type {jit_type.annotation_str}")
    return write(jit_type)


def same_type(first: Any, second: Any) -> bool:
    """Whether two TorchScript types are the same one."""
    return first.annotation_str == second.annotation_str


def is_named_tuple(jit_type: Any) -> bool:
    """Whether a type is a NamedTuple class of the archive."""
    return jit_type.kind() == "TupleType" and not jit_type.annotation_str.startswith("Tuple[")


def type_identifier(qualified_name: str) -> str:
    """What generated source calls a class of the archive: one name everywhere, whatever else is called the same."""
    last = re.sub(r"[^A-Za-z0-9_]", "_", qualified_name.rpartition(".")[2])
    return f"{TYPE_PREFIX}{last}_{hashlib.sha256(qualified_name.encode()).hexdigest()[:8]}"


def _tuple(items: list[ast.expr]) -> ast.expr:
    return ast.Tuple(items, ast.Load())


def _plain(path: str) -> Callable[[Any], ast.expr]:
    return lambda _: dotted(path)


def _tuple_annotation(jit_type: Any) -> ast.expr:
    if is_named_tuple(jit_type):
        return name(type_identifier(jit_type.annotation_str))
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
    "EnumType": lambda t: name(type_identifier(t.annotation_str)),
    "UnionType": _union_annotation,
}

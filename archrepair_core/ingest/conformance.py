"""Whether the values of a pickle have the types the code declares: torch stores attributes without checking."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archrepair_core.ingest.inert import Device, EnumMember, Object, Tensor, iterate_values, unsafe_pickle
from archrepair_core.ingest.program import ClassSource

_SCALARS: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "str": (str,),
    "complex": (complex,),
    "number": (int, float, complex),
    "Scalar": (int, float, complex),
    "Device": (Device,),
    "Layout": (int,),
    "NoneType": (type(None),),
}


def check_objects(root: Any, classes: Mapping[str, ClassSource], name: str) -> None:
    """Raises ModelError `unsafe_pickle` if an object has no class in the code or an attribute of another type."""
    declarations = _Declarations(classes, {})
    for value in iterate_values(root):
        if not isinstance(value, Object):
            continue
        declared = classes.get(value.class_name)
        if declared is None or declared.base != "Module":
            raise unsafe_pickle(name, f"an object of class {value.class_name}, which is no module of the code")
        for attribute, annotation in declared.attributes.items():
            if attribute not in value.attributes:
                raise unsafe_pickle(name, f"no value for {value.class_name}.{attribute}")
            if not _matches(value.attributes[attribute], annotation, declarations):
                found = value.attributes[attribute]
                kind = found.class_name if isinstance(found, Object) else type(found).__name__
                what = f"{value.class_name}.{attribute} of type {kind}, declared {ast.unparse(annotation)}"
                raise unsafe_pickle(name, what)


@dataclass(frozen=True)
class _Declarations:
    """The classes, and what was compared already: a value may be shared 2**n times in n levels."""

    classes: Mapping[str, ClassSource]
    known: dict[tuple[int, int], bool]


def _matches(value: Any, annotation: ast.expr, declarations: _Declarations) -> bool:
    key = (id(value), id(annotation))
    if key not in declarations.known:
        declarations.known[key] = _compare(value, annotation, declarations)
    return declarations.known[key]


def _compare(value: Any, annotation: ast.expr, declarations: _Declarations) -> bool:
    match annotation:
        case ast.Name(id="Any"):
            return True
        case ast.Name(id=name):
            return type(value) in _SCALARS.get(name, ())
        case ast.Subscript(value=ast.Name(id=container), slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _matches_container(value, container, items, declarations)
        case ast.Attribute():
            return _matches_class(value, ast.unparse(annotation), declarations)
    return False


def _matches_container(value: Any, container: str, items: list[ast.expr], declarations: _Declarations) -> bool:
    match container, items:
        case "Optional", [item]:
            return value is None or _matches(value, item, declarations)
        case "Union", _:
            return any(_matches(value, item, declarations) for item in items)
        case "List", [item]:
            return type(value) is list and all(_matches(element, item, declarations) for element in value)
        case "Dict", [key, item] if type(value) is dict:
            is_keyed = all(_compare(name, key, declarations) for name in value)
            return is_keyed and all(_matches(element, item, declarations) for element in value.values())
        case "Tuple", _ if type(value) is tuple and len(value) == len(items):
            return all(_matches(part, item, declarations) for part, item in zip(value, items, strict=True))
    return False


def _matches_class(value: Any, class_name: str, declarations: _Declarations) -> bool:
    declared = declarations.classes.get(class_name)
    if declared is None:
        return False
    if declared.base == "NamedTuple":
        return _matches_container(value, "Tuple", list(declared.attributes.values()), declarations)
    kind = EnumMember if declared.base == "Enum" else Object
    return isinstance(value, kind) and value.class_name == class_name

"""Whether the values of a pickle have the types the code declares: torch stores attributes without checking."""

import ast
from collections.abc import Mapping
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
    for value in iterate_values(root):
        if not isinstance(value, Object):
            continue
        declared = classes.get(value.class_name)
        if declared is None or declared.base != "Module":
            raise unsafe_pickle(name, f"an object of class {value.class_name}, which is no module of the code")
        for attribute, annotation in declared.attributes.items():
            if attribute not in value.attributes:
                raise unsafe_pickle(name, f"no value for {value.class_name}.{attribute}")
            if not _matches(value.attributes[attribute], annotation, classes):
                kind = type(value.attributes[attribute]).__name__
                what = f"{value.class_name}.{attribute} of type {kind}, declared {ast.unparse(annotation)}"
                raise unsafe_pickle(name, what)


def _matches(value: Any, annotation: ast.expr, classes: Mapping[str, ClassSource]) -> bool:
    match annotation:
        case ast.Name(id="Any"):
            return True
        case ast.Name(id=name):
            return type(value) in _SCALARS.get(name, ())
        case ast.Subscript(value=ast.Name(id=container), slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _matches_container(value, container, items, classes)
        case ast.Attribute():
            return _matches_class(value, ast.unparse(annotation), classes)
    return False


def _matches_container(value: Any, container: str, items: list[ast.expr], classes: Mapping[str, ClassSource]) -> bool:
    match container:
        case "Optional":
            return value is None or _matches(value, items[0], classes)
        case "Union":
            return any(_matches(value, item, classes) for item in items)
        case "List":
            return type(value) is list and all(_matches(item, items[0], classes) for item in value)
        case "Dict" if type(value) is dict and len(items) == 2:
            pairs = value.items()
            return all(_matches(k, items[0], classes) and _matches(v, items[1], classes) for k, v in pairs)
        case "Tuple" if type(value) is tuple and len(value) == len(items):
            return all(_matches(part, item, classes) for part, item in zip(value, items, strict=True))
    return False


def _matches_class(value: Any, class_name: str, classes: Mapping[str, ClassSource]) -> bool:
    declared = classes.get(class_name)
    if declared is None:
        return False
    if declared.base == "NamedTuple":
        fields = list(declared.attributes.values())
        return _matches_container(value, "Tuple", fields, classes)
    kind = EnumMember if declared.base == "Enum" else Object
    return isinstance(value, kind) and value.class_name == class_name

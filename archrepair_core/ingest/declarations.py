"""The value types an archive declares: named tuples and enums, read from the text of its checked copy.

The graphs name such types but tell neither their fields nor their members. A named tuple becomes a class of our own
with the same fields; an enum becomes the type of its values, and each member its value.
"""

import ast
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archrepair_core.ingest.annotations import UnsupportedTypeError, type_identifier
from archrepair_core.ingest.graphs import bare_name
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import dotted, is_identifier, name, subscript

_PLAIN_TYPES = {"Device": "torch.device", "number": "float", "Scalar": "float"}
_GENERIC_TYPES = ("Dict", "List", "Optional", "Tuple", "Union")
_SIMPLE_TYPES = ("Any", "Tensor", "bool", "float", "int", "str")


@dataclass(frozen=True)
class Declarations:
    """By qualified name: each named tuple's fields with their types as written, each enum's members with values."""

    named_tuples: Mapping[str, Mapping[str, ast.expr]] = field(default_factory=dict)
    enums: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_declarations(path: Path) -> Declarations:
    """What the code of an archive written by `repack_archive` declares."""
    named_tuples: dict[str, Mapping[str, ast.expr]] = {}
    enums: dict[str, Mapping[str, Any]] = {}
    for qualified_name, definition in _class_definitions(path):
        base = definition.bases[0] if definition.bases else None
        if isinstance(base, ast.Name) and base.id == "NamedTuple":
            named_tuples[qualified_name] = dict(_fields(definition))
        elif isinstance(base, ast.Name) and base.id == "Enum":
            enums[qualified_name] = dict(_members(definition))
    return Declarations(named_tuples, enums)


def _class_definitions(path: Path) -> Iterator[tuple[str, ast.ClassDef]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            _, _, record = entry.partition("/")
            if record.startswith("code/") and record.endswith(".py"):
                module = record.removeprefix("code/").removesuffix(".py").replace("/", ".")
                for statement in ast.parse(archive.read(entry)).body:
                    if isinstance(statement, ast.ClassDef):
                        yield f"{module}.{statement.name}", statement


def _fields(definition: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.annotation


def _members(definition: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in definition.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id, ast.literal_eval(statement.value)


@contextmanager
def enums_as_values(declarations: Declarations) -> Iterator[None]:
    """Inside, reading an enum member of the archive gives its value: the enum's own Python class is not here."""
    classes = torch.jit._state._name_to_pyclass
    before = {name: classes.get(name) for name in declarations.enums}
    classes |= {name: type("Members", (), dict(members)) for name, members in declarations.enums.items()}
    try:
        yield
    finally:
        for qualified_name, known in before.items():
            del classes[qualified_name]
            if known is not None:
                classes[qualified_name] = known


def define_types(declarations: Declarations, prefix: str) -> dict[str, type]:
    """What generated source calls each declared type, and that type; modules of its own begin with `prefix`."""
    types = {
        type_identifier(name): type(next(iter(members.values()), 0)) for name, members in declarations.enums.items()
    }
    for qualified_name in declarations.named_tuples:
        _define_named_tuple(qualified_name, declarations, prefix, types)
    return types


def _define_named_tuple(qualified_name: str, declarations: Declarations, prefix: str, types: dict[str, type]) -> None:
    identifier = type_identifier(qualified_name)
    if identifier in types:
        return
    fields = declarations.named_tuples[qualified_name]
    for other in _names_in(fields.values()) & declarations.named_tuples.keys() - {qualified_name}:
        _define_named_tuple(other, declarations, prefix, types)
    body: list[ast.stmt] = [_field(name, annotation) for name, annotation in fields.items()]
    definition = ast.ClassDef(identifier, [name("NamedTuple")], [], body or [ast.Pass()], [])
    types[identifier] = define(definition, f"{prefix}_{identifier}", bare_name(qualified_name), types)


def _field(field_name: str, annotation: ast.expr) -> ast.stmt:
    if not is_identifier(field_name) or field_name.startswith("_"):
        raise UnsupportedTypeError(f"named tuple with a field {field_name!r}")
    return ast.AnnAssign(ast.Name(field_name, ast.Store()), _checked(annotation), None, simple=1)


def _names_in(annotations: Any) -> set[str]:
    return {ast.unparse(node) for item in annotations for node in ast.walk(item) if isinstance(node, ast.Attribute)}


def _checked(annotation: ast.expr) -> ast.expr:
    """The annotation written anew from known names: it is the archive's text, and will be executed."""
    match annotation:
        case ast.Name(id=simple) if simple in _SIMPLE_TYPES:
            return name(simple)
        case ast.Name(id=plain) if plain in _PLAIN_TYPES:
            return dotted(_PLAIN_TYPES[plain])
        case ast.Name(id="NoneType") | ast.Constant(value=None):
            return ast.Constant(None)
        case ast.Subscript(value=ast.Name(id=generic), slice=index) if generic in _GENERIC_TYPES:
            items = index.elts if isinstance(index, ast.Tuple) else [index]
            checked = [_checked(item) for item in items]
            return subscript(name(generic), ast.Tuple(checked, ast.Load()) if len(checked) != 1 else checked[0])
        case ast.Attribute():
            return name(type_identifier(ast.unparse(annotation)))
    raise UnsupportedTypeError(f"type {ast.unparse(annotation)} in a named tuple")

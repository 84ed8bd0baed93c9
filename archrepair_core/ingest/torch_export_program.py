"""A torch.export program as plain data, read from its JSON by a closed schema. Imports no torch and runs nothing.

What the schema does not know (graphs inside graphs, custom objects, tokens) is refused by name; what a model does not
need (stack traces, guards, symbolic expressions, which torch itself would evaluate) is never looked at.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from archrepair_core.errors import ModelError

RE_EXPORT = (
    "Export the model again: torch.export.save(torch.export.export(model.eval(), (x,), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), "model.pt2").'
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,400}")
_MODULE_PATH = re.compile(r"([A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*)?")
_MAX_DEPTH = 40


@dataclass(frozen=True)
class Ref:
    """A value of the graph, by name."""

    name: str


@dataclass(frozen=True)
class Member:
    """A member of one of torch's enumerations, by the number the format gives it, or a device by its type."""

    kind: str
    value: int | str


@dataclass(frozen=True)
class Scope:
    """One call of a module while the program was recorded: `key` tells calls of the same module apart."""

    key: str
    path: str
    class_name: str


@dataclass(frozen=True)
class Operation:
    """One step of the program: `target` as in the file, inputs by the schema's names, the calls it happened in.

    `outputs` are value names; `is_list` tells a list of tensors from several results.
    """

    target: str
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[str, ...]
    is_list: bool
    scopes: tuple[Scope, ...]


@dataclass(frozen=True)
class Input:
    """What a graph input is: kind `parameter`, `buffer`, `constant`, `tensor` or `literal`.

    `target` is the name in the model, `value` the literal.
    """

    kind: str
    name: str
    target: str = ""
    value: Any = None
    persistent: bool = True


@dataclass(frozen=True)
class Tree:
    """How arguments or answers are nested; `kind` is leaf, tuple, list, dict or namedtuple, `keys` its field names."""

    kind: str
    children: tuple["Tree", ...] = ()
    keys: tuple[str, ...] = ()
    type_name: str = ""

    @property
    def num_leaves(self) -> int:
        """Tensors and literals below."""
        return 1 if self.kind == "leaf" else sum(child.num_leaves for child in self.children)


@dataclass(frozen=True)
class Dimension:
    """A size in the example the program was recorded with; `symbol` says which dynamic size it is, if any."""

    size: int
    symbol: str = ""


@dataclass(frozen=True)
class Program:
    """The whole graph. `mutations` are (value, buffer name) written back after a run, `modules` paths in order."""

    inputs: tuple[Input, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Any, ...]
    mutations: tuple[tuple[str, str], ...]
    input_shapes: Mapping[str, tuple[Dimension, ...]]
    input_dtypes: Mapping[str, int]
    modules: tuple[str, ...]
    arguments: tuple[str, ...]
    in_tree: Tree
    out_tree: Tree
    schema_version: tuple[int, int]
    written_by: str


class _Unknown(Exception):
    """The JSON is not what the schema says; the message is where and what."""


def unsafe_program(detail: str) -> ModelError:
    """The error for a program that torch.export.save does not write, or that needs more than it should."""
    return ModelError("unsafe_program", detail, hint=RE_EXPORT)


def read_json(data: bytes, name: str) -> Any:
    """The value of a JSON record. Raises ModelError `unsafe_program` for anything but plain, not too deep JSON."""
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, _Unknown) as error:
        raise unsafe_program(f"Record {name!r} is no JSON that torch writes: {str(error)[:200]}.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unknown("a key occurs twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise _Unknown(f"the number {text}")


def read_program(data: Any, name: str, check: Callable[[list[tuple[str, str]]], None]) -> Program:
    """The program of a parsed `models/*.json`. Raises ModelError `unsafe_program`, saying where it is odd.

    `check` gets every operator and the module it runs in before anything of it is read, and may refuse.
    """
    try:
        check([_target(node) for node in data["graph_module"]["graph"]["nodes"]])
        return _program(data)
    except ModelError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, StopIteration) as error:
        raise unsafe_program(f"Record {name!r} is incomplete: {type(error).__name__} {str(error)[:200]}.") from error
    except _Unknown as error:
        raise unsafe_program(f"Record {name!r}: {error}.") from error


def _program(data: Any) -> Program:
    module = data["graph_module"]
    graph, signature = module["graph"], module["signature"]
    entries = module["module_call_graph"]
    root = next(entry["signature"] for entry in entries if entry["fqn"] == "")
    fields = {key: tuple(value["field_names"]) for key, value in module.get("treespec_namedtuple_fields", {}).items()}
    inputs = tuple(_input(spec) for spec in signature["input_specs"])
    shapes = {
        item.name: tuple(_dimension(size) for size in graph["tensor_values"][item.name]["sizes"])
        for item in inputs
        if item.kind == "tensor"
    }
    version = data["schema_version"]
    outputs = [_only(spec) for spec in signature["output_specs"]]
    return Program(
        inputs=inputs,
        operations=tuple(_operation(node) for node in graph["nodes"]),
        outputs=tuple(_argument(spec["arg"]) for kind, spec in outputs if _known_output(kind) == "user_output"),
        mutations=tuple(
            (_name(spec["arg"]["name"]), _path(spec["buffer_name"]))
            for kind, spec in outputs
            if kind == "buffer_mutation"
        ),
        input_shapes=shapes,
        input_dtypes={name: _int(graph["tensor_values"][name]["dtype"]) for name in shapes},
        modules=tuple(_path(entry["fqn"].partition("@")[0]) for entry in entries),
        arguments=tuple(_name(argument) for argument in root.get("forward_arg_names") or ()),
        in_tree=_tree(read_json(root["in_spec"].encode(), "in_spec"), fields),
        out_tree=_tree(read_json(root["out_spec"].encode(), "out_spec"), fields),
        schema_version=(_int(version["major"]), _int(version["minor"])),
        written_by=_text(data.get("torch_version", "2.4 or older"))[:60],
    )


def _only(union: Any) -> tuple[str, Any]:
    if not isinstance(union, dict) or len(union) != 1:
        raise _Unknown(f"a union of {len(union) if isinstance(union, dict) else 'no'} members")
    ((kind, value),) = union.items()
    return kind, value


def _known_output(kind: str) -> str:
    if kind not in ("user_output", "buffer_mutation"):
        raise _Unknown(f"an output of kind {kind!r}, which a model for inference does not have")
    return kind


def _input(union: Any) -> Input:
    kind, spec = _only(union)
    match kind:
        case "parameter":
            return Input("parameter", _name(spec["arg"]["name"]), _path(spec["parameter_name"]))
        case "buffer":
            persistent = bool(spec["persistent"])
            return Input("buffer", _name(spec["arg"]["name"]), _path(spec["buffer_name"]), persistent=persistent)
        case "tensor_constant":
            return Input("constant", _name(spec["arg"]["name"]), _path(spec["tensor_constant_name"]))
        case "constant_input":
            return Input("literal", _name(spec["name"]), value=_literal(spec["value"]))
        case "user_input":
            value = _argument(spec["arg"])
            if isinstance(value, Ref):
                return Input("tensor", value.name)
            return Input("literal", "", value=value)
    raise _Unknown(f"an input of kind {kind!r} (custom objects and tokens are not supported)")


def _literal(union: Any) -> Any:
    kind, value = _only(union)
    if kind not in ("as_none", "as_int", "as_float", "as_string", "as_bool"):
        raise _Unknown(f"a constant input of kind {kind!r}")
    return _ARGUMENTS[kind](value)


def _target(node: Any) -> tuple[str, str]:
    scopes = _scopes(node["metadata"].get("nn_module_stack", ""))
    return _text(node["target"])[:120], scopes[-1].path if scopes else ""


def _operation(node: Any) -> Operation:
    target = _text(node["target"])
    try:
        inputs = tuple((_name(item["name"]), _argument(item["arg"])) for item in node["inputs"])
        outputs = [_argument(output) for output in node["outputs"]]
    except _Unknown as error:
        raise _Unknown(f"the operator {target[:120]!r} has {error}") from error
    is_list = len(outputs) == 1 and isinstance(outputs[0], list)
    results = outputs[0] if is_list else [output for output in outputs if output is not None]
    if not all(isinstance(result, Ref) for result in results):
        raise _Unknown(f"the operator {target[:120]!r} has an output that is no tensor or number")
    names = tuple(result.name for result in results)
    return Operation(target, inputs, names, is_list, _scopes(node["metadata"].get("nn_module_stack", "")))


def _scopes(text: str) -> tuple[Scope, ...]:
    """The calls around an operator, outermost first: `key,path,class;key,path,class`; () where it is no such text."""
    scopes = []
    for entry in _text(text).split(";") if text else []:
        parts = entry.split(",")
        if len(parts) != 3 or not _MODULE_PATH.fullmatch(parts[1].partition("@")[0]):
            return ()
        scopes.append(Scope(parts[0], parts[1].partition("@")[0], parts[2]))
    is_real = bool(scopes) and scopes[0].path == ""
    return tuple(scopes) if is_real else ()


def _tree(spec: Any, fields: Mapping[str, tuple[str, ...]]) -> Tree:
    if not isinstance(spec, list) or len(spec) != 2:
        raise _Unknown("a tree that is no [version, tree]")
    return _subtree(spec[1], fields, depth=0)


def _subtree(spec: Any, fields: Mapping[str, tuple[str, ...]], *, depth: int) -> Tree:
    kind, context = spec["type"], spec["context"]
    if depth > _MAX_DEPTH:
        raise _Unknown("a tree that is too deep")
    if kind is None:
        return Tree("leaf")
    children = tuple(_subtree(child, fields, depth=depth + 1) for child in spec["children_spec"])
    if kind in ("builtins.tuple", "builtins.list"):
        return Tree(kind.removeprefix("builtins."), children)
    # A named tuple's class is only known by the name it was registered under.
    kind = _text(context).strip('"') if kind == "collections.namedtuple" else kind
    keys = read_json(context.encode(), "tree") if kind == "builtins.dict" else list(fields.get(kind, ()))
    if len(keys) != len(children) or not all(isinstance(key, str) for key in keys):
        raise _Unknown(f"arguments or answers of type {str(kind)[:80]!r}: use tuples, lists, dicts with string keys")
    return Tree("dict" if kind == "builtins.dict" else "namedtuple", children, tuple(keys), _text(kind))


def _dimension(union: Any) -> Dimension:
    kind, value = _only(union)
    if kind == "as_int":
        return Dimension(_int(value))
    if kind == "as_expr":
        hint = value.get("hint") or {}
        return Dimension(_int(hint.get("as_int", 2)), _text(value["expr_str"])[:200])
    raise _Unknown(f"a size of kind {kind!r}")


def _name(text: Any) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise _Unknown(f"the name {str(text)[:80]!r}")
    return text


def _path(text: Any) -> str:
    if not isinstance(text, str) or len(text) > 1000 or not _MODULE_PATH.fullmatch(text):
        raise _Unknown(f"the module path {str(text)[:80]!r}")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unknown(f"{str(value)[:80]!r} where text belongs")
    return value


def _int(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 63:
        raise _Unknown(f"{str(value)[:80]!r} where an integer belongs")
    return value


def _float(value: Any) -> float:
    # Written as text because JSON has no word for them.
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if type(value) not in (int, float):
        raise _Unknown(f"{str(value)[:80]!r} where a number belongs")
    return float(value)


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Unknown(f"{str(value)[:80]!r} where true or false belongs")
    return value


def _ref(value: Any) -> Ref:
    # Results nobody uses have no name.
    return Ref(_name(value["name"]) if value["name"] else "")


def _number(value: Any) -> Any:
    kind, inner = _only(value)
    if kind == "as_name":
        return Ref(_name(inner))
    return _ARGUMENTS[kind](inner)


def _optional(value: Any) -> Ref | None:
    kind, inner = _only(value)
    return None if kind == "as_none" else _ref(inner)


def _each(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def read_list(values: Any) -> list[Any]:
        if not isinstance(values, list):
            raise _Unknown(f"{str(values)[:80]!r} where a list belongs")
        return [read(value) for value in values]

    return read_list


def _member(kind: str) -> Callable[[Any], Member]:
    return lambda value: Member(kind, _int(value))


def _argument(union: Any) -> Any:
    kind, value = _only(union)
    read = _ARGUMENTS.get(kind)
    if read is None:
        raise _Unknown(f"an argument of kind {kind.removeprefix('as_')!r}, which is not supported")
    return read(value)


_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": _ref,
    "as_tensors": _each(_ref),
    "as_optional_tensor": _optional,
    "as_optional_tensors": _each(_optional),
    "as_int": _int,
    "as_ints": _each(_int),
    "as_float": _float,
    "as_floats": _each(_float),
    "as_bool": _bool,
    "as_bools": _each(_bool),
    "as_string": _text,
    "as_sym_int": _number,
    "as_sym_ints": _each(_number),
    "as_sym_float": _number,
    "as_sym_bool": _number,
    "as_scalar_type": _member("dtype"),
    "as_memory_format": _member("memory_format"),
    "as_layout": _member("layout"),
    "as_device": lambda value: Member("device", _text(value["type"])),
}

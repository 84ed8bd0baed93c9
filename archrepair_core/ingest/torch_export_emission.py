"""One call of a module, written as the source of a method: a step is a line, a call inside it a call of the child.

Names in the source are counted anew in each method, so that calls which do the same have the same text.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from archrepair_core.ingest.aten import function_of
from archrepair_core.ingest.syntax import (
    assign,
    assign_all,
    call,
    dotted,
    is_identifier,
    is_reserved,
    literal,
    member,
    name,
    subscript,
)
from archrepair_core.ingest.torch_export_batch import MARK, Batch, used_names
from archrepair_core.ingest.torch_export_graph import DTYPES, MEMORY_FORMATS
from archrepair_core.ingest.torch_export_program import Member, Ref, Tree
from archrepair_core.ingest.torch_export_tree import Call, Line

# Where an eval export holds False because the model was in eval mode; a True stays: it was deployed like that.
TRAINING_FLAGS = MappingProxyType(
    {
        "alpha_dropout": "train",
        "batch_norm": "training",
        "dropout": "train",
        "dropout_": "train",
        "feature_dropout": "train",
        "feature_dropout_": "train",
        "instance_norm": "use_input_stats",
    }
)
_MAX_LITERAL_ELEMENTS = 16
_LITERAL_DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool)
_SIZE_OPERATORS: Mapping[str, ast.operator] = MappingProxyType(
    {
        "add": ast.Add(),
        "sub": ast.Sub(),
        "mul": ast.Mult(),
        "floordiv": ast.FloorDiv(),
        "mod": ast.Mod(),
        "truediv": ast.Div(),
        "pow": ast.Pow(),
    }
)
_SIZE_COMPARISONS: Mapping[str, ast.cmpop] = MappingProxyType(
    {"eq": ast.Eq(), "ne": ast.NotEq(), "le": ast.LtE(), "ge": ast.GtE(), "lt": ast.Lt(), "gt": ast.Gt()}
)
_SIZE_CALLS: Mapping[str, str] = MappingProxyType(
    {"trunc": "int", "sym_float": "float", "sym_int": "int", "sym_max": "max", "sym_min": "min"}
)
# Differences that only matter while a program is recorded.
_PLAIN_NAMES = MappingProxyType(
    {
        "_unsafe_view": "view",
        "alias": "view_as",
        "detach_copy": "detach",
        "lift_fresh": "clone",
        "lift_fresh_copy": "clone",
        "_log_softmax": "log_softmax",
        "_softmax": "softmax",
    }
)
# Arguments of the recorded form that the plain one does not have.
_DROPPED = frozenset({"pin_memory", "layout", "half_to_float", "non_blocking"})


@dataclass
class Writing:
    """What a method is written from: shapes and tensors of the program, and what the written class must hold.

    `tensors` and `paths` (all its names in the model, none for a constant) are by value name, `methods` by a call's id.
    """

    path: str
    shapes: Mapping[str, Any]
    paths: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, torch.Tensor]
    methods: Mapping[int, str]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, ast.expr] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    # Tensors the current line reads anyway.
    near: tuple[str, ...] = ()

    def bind(self, value: str, hint: str) -> str:
        """A new local that holds `value` from now on."""
        local = self.fresh(hint)
        self.values[value] = name(local)
        return local

    def fresh(self, hint: str) -> str:
        """An unused local name like `hint`."""
        stem = re.sub(r"[^A-Za-z0-9_]", "_", hint).strip("_") or "value"
        stem = stem if is_identifier(stem) and not is_reserved(stem) else f"{stem}_"
        stem = stem if is_identifier(stem) and not is_reserved(stem) else f"v_{stem}"
        candidate, count = stem, 0
        while candidate in self.taken:
            count += 1
            candidate = f"{stem}_{count}"
        self.taken.add(candidate)
        return candidate


def write_call(called: Call, writing: Writing) -> ast.FunctionDef:
    """The method that does what `called` did, for a module below the root: values in, values out."""
    parameters = [ast.arg("self")]
    for value in called.inputs:
        shape = writing.shapes[value]
        hint = "x" if isinstance(shape, tuple) else "size"
        parameters.append(ast.arg(writing.bind(value, hint), _annotation(shape)))
    statements = write_items(called.items, writing)
    results = [read(value, writing) for value in called.outputs]
    statements.append(ast.Return(results[0] if len(results) == 1 else ast.Tuple(results, ast.Load())))
    returns = _annotation(writing.shapes[called.outputs[0]]) if len(results) == 1 else None
    return function("forward", parameters, [], statements, returns)


def function(
    identifier: str, parameters: list[ast.arg], defaults: list[ast.expr], body: list[ast.stmt], returns: ast.expr | None
) -> ast.FunctionDef:
    """A plain function definition."""
    arguments = ast.arguments(posonlyargs=[], args=parameters, kwonlyargs=[], kw_defaults=[], defaults=defaults)
    return ast.FunctionDef(name=identifier, args=arguments, body=body, decorator_list=[], returns=returns)


def _annotation(shape: Any) -> ast.expr:
    return name("Tensor") if isinstance(shape, tuple) else name(type(shape).__name__)


def write_items(items: Iterable[Line | Call], writing: Writing) -> list[ast.stmt]:
    """The statements for steps and calls in order."""
    statements: list[ast.stmt] = []
    for item in items:
        statements += _call(item, writing) if isinstance(item, Call) else _line(item, writing)
    return statements


def _call(item: Call, writing: Writing) -> list[ast.stmt]:
    owner = below(item.path, writing.path)
    method = writing.methods[id(item)]
    target = owner if method == "forward" else member(owner, method)
    expression = call(target, *[read(value, writing) for value in item.inputs])
    hint = item.path.rpartition(".")[2]
    hint = hint if not hint.isdigit() else item.path.replace(".", "_").rpartition("_")[0].rpartition("_")[2] or "x"
    targets = [writing.bind(value, hint) for value in item.outputs]
    return [assign(targets[0], expression) if len(targets) == 1 else assign_all(targets, expression)]


def _line(line: Line, writing: Writing) -> list[ast.stmt]:
    operation = line.step.operation
    read_here = [value for value in used_names(line.arguments) if value in writing.values]
    writing.near = tuple(value for value in read_here if isinstance(writing.shapes.get(value), tuple))
    expression = _expression(line, writing)
    targets = [writing.bind(value, line.step.kind) for value in operation.outputs]
    if not targets:
        return [ast.Expr(expression)]
    if len(targets) > 1 or operation.is_list:
        return [assign_all(targets, expression)]
    return [assign(targets[0], expression)]


def _expression(line: Line, writing: Writing) -> ast.expr:
    step = line.step
    if step.schema is None:
        return _size_expression(step.kind, [_write(value, writing) for value in line.arguments.values()])
    if step.kind in ("sym_size", "sym_numel"):
        source, *dimension = [_write(value, writing) for value in line.arguments.values()]
        return call(member(source, "size" if dimension else "numel"), *dimension)
    return _spell(line, writing)


def _size_expression(kind: str, operands: list[ast.expr]) -> ast.expr:
    plain = kind.rstrip("_")
    if plain in _SIZE_OPERATORS:
        return ast.BinOp(operands[0], _SIZE_OPERATORS[plain], operands[1])
    if plain in _SIZE_COMPARISONS:
        return ast.Compare(operands[0], [_SIZE_COMPARISONS[plain]], [operands[1]])
    if plain in ("and", "or"):
        return ast.BoolOp(ast.And() if plain == "and" else ast.Or(), operands)
    if plain in ("neg", "pos"):
        return ast.UnaryOp(ast.USub() if plain == "neg" else ast.UAdd(), operands[0])
    if plain == "sym_not":
        return ast.UnaryOp(ast.Not(), operands[0])
    return call(name(_SIZE_CALLS[plain]), *operands)


def _spell(line: Line, writing: Writing) -> ast.expr:
    """The operator as eager Python and TorchScript both call it; defaults at the end are left out."""
    step = line.step
    positional: list[ast.expr] = []
    keywords: dict[str, ast.expr] = {}
    last_needed = 0
    for argument in step.schema.arguments:
        if argument.name in _DROPPED:
            continue
        given = argument.name in line.arguments and not _is_default(argument, line.arguments[argument.name])
        if argument.kwarg_only:
            if given:
                keywords[argument.name] = _argument(argument, line, writing)
            continue
        if argument.name not in line.arguments:
            positional.append(literal(argument.default_value))
        else:
            positional.append(_argument(argument, line, writing))
        last_needed = len(positional) if given else last_needed
    positional = positional[:last_needed]
    kind = _PLAIN_NAMES.get(step.kind, step.kind)
    if kind == "view_as":
        positional.append(positional[0])
    if kind == "_to_copy":
        return _copied(positional[0], keywords, writing)
    takes_self = bool(positional) and step.schema.arguments[0].name == "self"
    return call(function_of(kind, positional, takes_self=takes_self), *positional, **keywords)


def _copied(source: ast.expr, keywords: dict[str, ast.expr], writing: Writing) -> ast.expr:
    dtype = keywords.get("dtype")
    return call(member(source, "to"), dtype) if dtype is not None else call(member(source, "clone"))


def _is_default(argument: Any, value: Any) -> bool:
    if not argument.has_default_value() or isinstance(value, Ref | Batch | Member):
        return False
    default = argument.default_value
    return type(value) is type(default) and bool(value == default)


def _argument(argument: Any, line: Line, writing: Writing) -> ast.expr:
    value = line.arguments[argument.name]
    if value is False and TRAINING_FLAGS.get(line.step.kind) == argument.name:
        return dotted("self.training")
    written = _write(value, writing)
    if isinstance(value, list) and any(item is None for item in value):
        optional = subscript(name("List"), subscript(name("Optional"), name("Tensor")))
        return call(dotted("torch.jit.annotate"), optional, written)
    return written


def _write(value: Any, writing: Writing) -> ast.expr:
    match value:
        case Ref(value_name):
            return read(value_name, writing)
        case Batch(times):
            return _batch(times, writing)
        case list():
            return ast.List([_write(item, writing) for item in value], ast.Load())
        case Member("dtype", number):
            return dotted(str(DTYPES[int(number)]))
        case Member("memory_format", number):
            return dotted(str(MEMORY_FORMATS[int(number)]))
        case Member("device"):
            return _device(writing)
    return literal(value)


def read(value: str, writing: Writing) -> ast.expr:
    """The expression for a value of the program: a local, a tensor of the model, or a constant."""
    if value in writing.values:
        return writing.values[value]
    own = [path for path in writing.paths.get(value, ()) if not writing.path or path.startswith(f"{writing.path}.")]
    if own:
        return below(own[0], writing.path)
    return _constant(writing.tensors[value], writing)


def _constant(tensor: torch.Tensor, writing: Writing) -> ast.expr:
    if tensor.numel() <= _MAX_LITERAL_ELEMENTS and tensor.dtype in _LITERAL_DTYPES:
        keywords = {"dtype": dotted(str(tensor.dtype)), "device": _device(writing)}
        return call(dotted("torch.tensor"), literal(tensor.tolist()), **keywords)
    attribute = next((known for known, held in writing.constants.items() if held is tensor), "")
    if not attribute:
        attribute = f"_constant_{len(writing.constants)}"
        writing.constants[attribute] = tensor
    return dotted(f"self.{attribute}")


def below(path: str, owner: str) -> ast.expr:
    """`self.a.b` for the path `owner.a.b`."""
    expression = name("self")
    for part in path.removeprefix(f"{owner}." if owner else "").split("."):
        expression = member(expression, part)
    return expression


def _tensors_so_far(writing: Writing) -> list[str]:
    """Values that hold a tensor, the latest first: reading off the nearest leaves a model easy to cut in two."""
    return [value for value in reversed(writing.values) if isinstance(writing.shapes.get(value), tuple)]


def _device(writing: Writing) -> ast.expr:
    """Where the inputs are, not where the program was recorded."""
    found = _tensors_so_far(writing)
    return member(writing.values[found[0]], "device") if found else call(dotted("torch.device"), ast.Constant("cpu"))


def _batch(times: int, writing: Writing) -> ast.expr:
    """`times` the batch size, read off the latest tensor that tells it with least arithmetic."""
    sizes = [
        (size // MARK, value, axis)
        for value in (*writing.near, *_tensors_so_far(writing))
        for axis, size in enumerate(writing.shapes[value])
        if size and size % MARK == 0
    ]
    held, value, axis = min(
        sizes, key=lambda found: (times % found[0] != 0, found[1] not in writing.near, found[0] != times)
    )
    size = call(member(writing.values[value], "size"), ast.Constant(axis))
    if held == times:
        return size
    if times % held == 0:
        return ast.BinOp(size, ast.Mult(), ast.Constant(times // held))
    batch = ast.BinOp(size, ast.FloorDiv(), ast.Constant(held))
    return batch if times == 1 else ast.BinOp(batch, ast.Mult(), ast.Constant(times))


def write_annotation(tree: Tree) -> ast.expr | None:
    """The type of an argument nested like `tree`; None for what TorchScript has no word for."""
    if tree.kind == "leaf":
        return name("Tensor")
    inner = [write_annotation(child) for child in tree.children]
    known = [item for item in inner if item is not None]
    if len(known) < len(inner) or not known or tree.kind == "namedtuple":
        return None
    if tree.kind == "tuple":
        return subscript(name("Tuple"), ast.Tuple(known, ast.Load()))
    if len({ast.dump(item) for item in known}) > 1:
        return None
    if tree.kind == "list":
        return subscript(name("List"), known[0])
    return subscript(name("Dict"), ast.Tuple([name("str"), known[0]], ast.Load()))

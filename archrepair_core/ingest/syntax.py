"""The few `ast` nodes the decompiler writes. Source is printed from these: no text of an archive is ever pasted."""

import ast
import builtins
import keyword
import math
import re

import torch

# Names every generated file can use; locals keep clear of them.
GLOBAL_NAMES = frozenset(
    {"Any", "Dict", "List", "NamedTuple", "Optional", "Tensor", "Tuple", "Union", "math", "torch", "warnings"}
)
FUNCTION_PREFIX = "fn_"
TYPE_PREFIX = "nt_"
_GETTER = re.compile(r"__(\w+)_getter", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_identifier(text: str) -> bool:
    """Whether `text` may stand in the source as it is: ASCII, no keyword, not name-mangled inside a class."""
    return bool(_IDENTIFIER.fullmatch(text)) and not keyword.iskeyword(text) and not text.startswith("__")


def is_reserved(text: str) -> bool:
    """Whether a local of this name would hide something the generated source relies on."""
    taken = text in GLOBAL_NAMES or text == "self" or hasattr(builtins, text)
    return taken or text.startswith((FUNCTION_PREFIX, TYPE_PREFIX))


def property_of(method: str) -> str | None:
    """The property whose getter TorchScript calls `__x_getter`; None for any other method."""
    match = _GETTER.fullmatch(method)
    return match[1] if match and is_identifier(match[1]) else None


def name(identifier: str) -> ast.expr:
    """A name that is read."""
    return ast.Name(identifier, ast.Load())


def dotted(path: str) -> ast.expr:
    """`a.b.c` as an expression; only for paths written in our own code."""
    first, *rest = path.split(".")
    expression = name(first)
    for part in rest:
        expression = ast.Attribute(expression, part, ast.Load())
    return expression


def member(base: ast.expr, attribute: str) -> ast.expr:
    """`base.attribute`, or `getattr(base, 'attribute')` where the name is no identifier: TorchScript takes both."""
    if is_identifier(attribute):
        return ast.Attribute(base, attribute, ast.Load())
    return call(name("getattr"), base, ast.Constant(attribute))


def call(function: ast.expr, /, *arguments: ast.expr, **keywords: ast.expr) -> ast.expr:
    """`function(*arguments, **keywords)`."""
    return ast.Call(function, list(arguments), [ast.keyword(key, value) for key, value in keywords.items()])


def subscript(base: ast.expr, index: ast.expr) -> ast.expr:
    """`base[index]`."""
    return ast.Subscript(base, index, ast.Load())


def assign(target: str, value: ast.expr) -> ast.stmt:
    """`target = value` for a local."""
    return ast.Assign([ast.Name(target, ast.Store())], value)


def assign_all(targets: list[str], values: ast.expr) -> ast.stmt:
    """`a, b = values`; `(a,) = values` for one target."""
    return ast.Assign([ast.Tuple([ast.Name(target, ast.Store()) for target in targets], ast.Store())], values)


def literal(value: object) -> ast.expr:
    """A constant of the archive as a literal. Raises TypeError for what Python has no literal for."""
    match value:
        case None | bool() | str():
            return ast.Constant(value)
        case int() | float() if math.isfinite(value):
            return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)
        case float():
            return call(name("float"), ast.Constant(str(value)))
        case list():
            return ast.List([literal(item) for item in value], ast.Load())
        case tuple():
            return ast.Tuple([literal(item) for item in value], ast.Load())
        case dict():
            return ast.Dict([literal(key) for key in value], [literal(item) for item in value.values()])
        case torch.device():
            return call(dotted("torch.device"), ast.Constant(str(value)))
    raise TypeError(f"no literal for a constant of type {type(value).__name__}")

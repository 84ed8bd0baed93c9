"""The model's own forward: arguments and answers nested and named as the exported model has them."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from archrepair_core.ingest.syntax import (
    GLOBAL_NAMES,
    assign_all,
    call,
    is_identifier,
    literal,
    member,
    name,
    subscript,
)
from archrepair_core.ingest.torch_export_emission import Writing, below, function, read, write_annotation, write_items
from archrepair_core.ingest.torch_export_program import Input, Program, Ref, Tree, unsafe_program
from archrepair_core.ingest.torch_export_tree import Call

ANSWER_PREFIX = "Answer_"
# Names the written source reads itself; `input`, a name of Python's own and a common one for arguments, is not.
_TAKEN = GLOBAL_NAMES | {"self", "bool", "float", "getattr", "int", "max", "min", "str"}


def write_root(called: Call, writing: Writing, program: Program) -> ast.FunctionDef:
    """`forward` of the whole model: unpack the arguments, do everything, put the answer together."""
    # Every name the arguments use must be taken before a local could get it.
    writing.taken.update(program.arguments)
    given = user_inputs(program)
    parameters, defaults, statements = [ast.arg("self")], [], list[ast.stmt]()
    leaves = iter(given)
    for argument, tree in zip(program.arguments, argument_trees(program), strict=True):
        inputs = [next(leaves) for _ in range(tree.num_leaves)]
        if tree.kind == "leaf" and inputs[0].kind == "literal":
            parameters.append(ast.arg(argument, _optional(inputs[0].value)))
            defaults.append(literal(inputs[0].value))
            continue
        defaults = []
        parameters.append(ast.arg(argument, write_annotation(tree)))
        statements += _unpack(name(argument), tree, iter(inputs), writing)
    statements += write_items(called.items, writing)
    for value, buffer in program.mutations:
        statements.append(ast.Expr(call(member(below(buffer, ""), "copy_"), read(value, writing))))
    answers = iter(_answer(output, writing) for output in program.outputs)
    statements.append(ast.Return(_pack(program.out_tree, answers)))
    returns = write_annotation(program.out_tree) if program.out_tree.kind in ("leaf", "tuple") else None
    is_plain = all(isinstance(output, Ref) for output in program.outputs)
    return function("forward", parameters, defaults, statements, returns if is_plain else None)


def argument_trees(program: Program) -> list[Tree]:
    """One tree per argument of forward, positional ones first. Raises ModelError where names and trees differ."""
    children = program.in_tree.children
    trees = [tree for part in children for tree in part.children]
    is_pair = [part.kind for part in children] == ["tuple", "dict"]
    names = program.arguments
    usable = all(is_identifier(argument) and argument not in _TAKEN for argument in names)
    if not is_pair or len(trees) != len(names) or len(set(names)) != len(names) or not usable:
        raise unsafe_program(f"The program names its arguments {list(names)[:8]}, which its inputs do not fit.")
    if sum(tree.num_leaves for tree in trees) != len(user_inputs(program)):
        raise unsafe_program(f"The program has {len(user_inputs(program))} inputs, which its arguments do not fit.")
    return trees


def user_inputs(program: Program) -> list[Input]:
    """The program's inputs that a caller gives, in order."""
    return [item for item in program.inputs if item.kind in ("tensor", "literal")]


@lru_cache(maxsize=256)
def tuple_class(tree: Tree) -> type[tuple[Any, ...]]:
    """The class of a NamedTuple answer, made anew from its field names. Raises ModelError for odd ones."""
    module_name, _, last = tree.type_name.rpartition(".")
    if not all(map(is_identifier, [*tree.type_name.split("."), *tree.keys])) or any(
        key.startswith("_") for key in tree.keys
    ):
        raise unsafe_program(f"An answer is of type {tree.type_name[:80]!r} with fields {list(tree.keys)[:8]}.")
    made: Any = NamedTuple(last, [(key, Tensor) for key in tree.keys])  # type: ignore[misc]
    # What TorchScript will call it.
    made.__module__ = module_name or "exported"
    return made


def _optional(value: Any) -> ast.expr:
    kind = "Tensor" if value is None else type(value).__name__
    return subscript(name("Optional"), name(kind)) if value is None else name(kind)


def _unpack(source: ast.expr, tree: Tree, inputs: Iterator[Input], writing: Writing) -> list[ast.stmt]:
    if tree.kind == "leaf":
        item = next(inputs)
        if item.kind == "tensor":
            writing.values[item.name] = source
        return []
    if tree.kind == "dict":
        parts = [subscript(source, ast.Constant(key)) for key in tree.keys]
        pairs = list(zip(parts, tree.children, strict=True))
        return [statement for part, child in pairs for statement in _unpack(part, child, inputs, writing)]
    locals_ = [writing.fresh("part") for _ in tree.children]
    statements: list[ast.stmt] = [assign_all(locals_, source)]
    for local, child in zip(locals_, tree.children, strict=True):
        statements += _unpack(name(local), child, inputs, writing)
    return statements


def _answer(output: Any, writing: Writing) -> ast.expr:
    return read(output.name, writing) if isinstance(output, Ref) else literal(output)


def _pack(tree: Tree, answers: Iterator[ast.expr]) -> ast.expr:
    if tree.kind == "leaf":
        return next(answers)
    items = [_pack(child, answers) for child in tree.children]
    if tree.kind == "dict":
        return ast.Dict([ast.Constant(key) for key in tree.keys], items)
    if tree.kind == "namedtuple":
        return call(name(f"{ANSWER_PREFIX}{tuple_class(tree).__name__}"), *items)
    return ast.List(items, ast.Load()) if tree.kind == "list" else ast.Tuple(items, ast.Load())

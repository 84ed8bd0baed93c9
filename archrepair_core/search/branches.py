"""Put a branch beside a block whatever the block's arguments are, in a form TorchScript compiles."""

import ast
import inspect
import uuid

from torch import Tensor, nn

from archrepair_core.blocks import Block
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import assign, call, dotted, name
from archrepair_core.search.primitives import BlockWithBranch, Branch
from archrepair_core.slicing import parse_method

_ADDED = "added_by_the_branch"
_AS_LIST = "tensors_as_list"
_QUALIFIED_NAME = f"__torch__.{BlockWithBranch.__module__}.{BlockWithBranch.__name__}"


def with_branch(original: nn.Module, branch: Branch, block: Block) -> nn.Module:
    """`original` with `branch` beside it; called as `original` was.

    The branch is fed the block's tensors, concatenated over channels where there are several. TorchScript knows no
    `*args`: a block with more than one argument, or a list, gets a class of its own with exactly these.
    """
    if _takes_one_tensor(original):
        return BlockWithBranch(original, branch)
    definition = parse_method(inspect.getattr_static(type(original), "forward"))
    forward = ast.FunctionDef("forward", definition.args, _body(definition, block), [], definition.returns)
    class_name = BlockWithBranch.__name__
    base = f"{class_name}_"
    known = vars(inspect.getmodule(type(original))) | type(original).forward.__globals__
    used = {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}
    namespace = {key: known[key] for key in used & known.keys()} | {base: BlockWithBranch, _AS_LIST: as_list}
    kind = define(
        ast.ClassDef(class_name, [name(base)], [], [forward], []),
        f"archrepair_branch_{uuid.uuid4().hex[:12]}",
        _QUALIFIED_NAME,
        namespace,
    )
    made: nn.Module = kind(original, branch)
    return made


def _takes_one_tensor(module: nn.Module) -> bool:
    parameters = list(inspect.signature(module.forward).parameters.values())
    return len(parameters) == 1 and not _is_list(parameters[0].annotation)


def _is_list(annotation: object) -> bool:
    return "list" in str(annotation).lower()


def as_list(tensors: Tensor | list[Tensor]) -> list[Tensor]:
    """The list that timm's dense layers take, which may be a single tensor.

    A function of its own: inside a forward, TorchScript writes such a check so that it cannot read it again.
    """
    if isinstance(tensors, Tensor):
        return [tensors]
    else:  # TorchScript knows the type only in this arm
        return tensors


def _body(definition: ast.FunctionDef, block: Block) -> list[ast.stmt]:
    """The branch goes first: the original may overwrite its input in place."""
    arguments = {argument.arg: argument for argument in definition.args.args[1:]}
    passed = [name(argument) for argument in arguments]
    added = assign(_ADDED, call(dotted("self.branch"), _fed([arguments[key] for key in block.arguments], block)))
    total = ast.BinOp(call(dotted("self.original"), *passed), ast.Add(), name(_ADDED))
    return [added, ast.Return(total)]


def _listed(argument: ast.arg) -> ast.expr:
    is_union = argument.annotation is not None and ast.unparse(argument.annotation).startswith("Union[")
    return call(name(_AS_LIST), name(argument.arg)) if is_union else name(argument.arg)


def _fed(arguments: list[ast.arg], block: Block) -> ast.expr:
    lists = [_is_list(ast.unparse(argument.annotation)) if argument.annotation else False for argument in arguments]
    if lists == [False]:
        return name(arguments[0].arg)
    tensors: ast.expr = ast.List(
        [name(argument.arg) for argument, is_list in zip(arguments, lists, strict=True) if not is_list], ast.Load()
    )
    for argument, is_list in zip(arguments, lists, strict=True):
        if is_list:
            tensors = _listed(argument) if lists == [True] else ast.BinOp(tensors, ast.Add(), _listed(argument))
    return call(dotted("torch.cat"), tensors, ast.Constant(1 if len(block.input_shape) >= 3 else -1))

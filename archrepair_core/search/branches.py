"""Put a branch beside a block or in its place, whatever the block's arguments are, in a form TorchScript compiles."""

import ast
import inspect
import uuid
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archrepair_core.blocks import Block
from archrepair_core.errors import EngineError
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import assign, call, dotted, name
from archrepair_core.search.dag import INPUT_NODE, Edge, make_dag
from archrepair_core.search.operations import operations_for
from archrepair_core.search.primitives import Span, span_of
from archrepair_core.slicing import parse_method

_ADDED = "added_by_the_branch"
_AS_LIST = "tensors_as_list"


class Branch(nn.Module):
    """An operation followed by a zero-initialised scale per output channel."""

    def __init__(self, operation: nn.Module, scale_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.operation = operation
        self.scale = nn.Parameter(torch.zeros(scale_shape))

    def forward(self, x: Tensor) -> Tensor:
        """The scaled operation; zero before training."""
        return self.operation(x) * self.scale


class BlockWithBranch(nn.Module):
    """The original block with one more way from its input to its output."""

    def __init__(self, original: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both ways. The branch goes first: the original may overwrite its input in place."""
        added = self.branch(x)
        return self.original(x) + added


class BlockReplaced(nn.Module):
    """A branch where the original block was."""

    def __init__(self, _original: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """What the branch gives."""
        return self.branch(x)


class BlockMixed(BlockWithBranch):
    """A block while it is searched: its answer counts with the share that the supernet beside it gives it."""

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum of both ways."""
        added = self.branch(x)
        share: Tensor = self.branch.original_share()  # type: ignore[operator]  # a Supernet
        return self.original(x) * share + added


def build_branch(block: Block, edges: Sequence[Edge]) -> Branch:
    """Fresh operations for `edges`, which come in order, with a zero scale, in eval mode.

    Raises EngineError for an operation that is none of `operations_for(block)`.
    """
    span, known = span_of(block), operations_for(block)
    unknown = sorted({edge.operation for edge in edges} - known.keys())
    if span is None or unknown:
        raise EngineError("bad_genotype", f"{block.name} takes no cell with {unknown or 'any operation'}")
    inner = Span(span.channels_out, span.channels_out, tokens=span.tokens)
    operations = {
        edge.module_name: known[edge.operation](span if edge.source == INPUT_NODE else inner) for edge in edges
    }
    operation = make_dag(edges, operations) if len(edges) > 1 else operations[edges[0].module_name]
    scale_shape = (span.channels_out, 1, 1) if len(block.output_shape) == 3 else (span.channels_out,)
    return Branch(operation, scale_shape).eval()


def with_branch(
    original: nn.Module, branch: nn.Module, block: Block, *, base: type[nn.Module] = BlockWithBranch
) -> nn.Module:
    """`original` with `branch` beside it; called as `original` was. `base=BlockReplaced` leaves the original
    out, `BlockMixed` weighs it.

    The branch is fed the block's tensors, concatenated over channels where there are several. TorchScript knows no
    `*args`: a block with more than one argument, or a list, gets a class of its own with exactly these.
    """
    if _takes_one_tensor(original):
        return base(original, branch)
    definition = parse_method(inspect.getattr_static(type(original), "forward"))
    body = _body(definition, block, base)
    forward = ast.FunctionDef("forward", definition.args, body, [], definition.returns)
    base_name = f"{base.__name__}_"
    known = vars(inspect.getmodule(type(original))) | type(original).forward.__globals__
    used = {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}
    namespace = {key: known[key] for key in used & known.keys()} | {base_name: base, _AS_LIST: as_list}
    kind = define(
        ast.ClassDef(base.__name__, [name(base_name)], [], [forward], []),
        f"archrepair_branch_{uuid.uuid4().hex[:12]}",
        f"__torch__.{base.__module__}.{base.__name__}",
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


def _body(definition: ast.FunctionDef, block: Block, base: type[nn.Module]) -> list[ast.stmt]:
    """The branch goes first: the original may overwrite its input in place."""
    arguments = {argument.arg: argument for argument in definition.args.args[1:]}
    branch = call(dotted("self.branch"), _fed([arguments[key] for key in block.arguments], block))
    if base is BlockReplaced:
        return [ast.Return(branch)]
    original = call(dotted("self.original"), *(name(argument) for argument in arguments))
    if base is BlockMixed:
        original = ast.BinOp(original, ast.Mult(), call(dotted("self.branch.original_share")))
    return [assign(_ADDED, branch), ast.Return(ast.BinOp(original, ast.Add(), name(_ADDED)))]


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

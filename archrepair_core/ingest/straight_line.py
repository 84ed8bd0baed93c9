"""What a small module does in one mode, with its branches decided: the evidence on which a leaf is rebuilt.

Names in an archive are chosen by whoever wrote it. That a module called Conv2d *is* a convolution is read off its
graphs: followed with `training` known, they must come to exactly the operators a Conv2d performs, on its own tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from archrepair_core.ingest.graphs import Block, Node, Value, inlined, method_graph

_MAX_STEPS = 5000


class UndecidableError(Exception):
    """The graphs do something other than run a fixed list of operators; not an error of the archive."""


@dataclass(frozen=True)
class Symbol:
    """A value known by where it comes from: `input:0`, `tensor:weight`, `result:0`; `unknown` for derived numbers."""

    origin: str


@dataclass(frozen=True)
class Step:
    """One operator on tensors; its arguments by their schema's names, constants or Symbols."""

    operator: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class StraightLine:
    """The operators a method runs in one mode, in order, and what it returns."""

    steps: tuple[Step, ...]
    result: Any


UNKNOWN = Symbol("unknown")
SELF = Symbol("self")


def straight_line(module: torch.jit.ScriptModule, method: str, *, training: bool) -> StraightLine:
    """The operators `method` runs when `training` is as said. Raises UndecidableError where the graph does not tell."""
    graph = inlined(method_graph(module, method))
    trail = _Trail(module, training)
    owner, *inputs = graph.inputs()
    trail.values[owner.debugName()] = SELF
    for index, value in enumerate(inputs):
        trail.values[value.debugName()] = Symbol(f"input:{index}")
    trail.follow(graph)
    return StraightLine(tuple(trail.steps), trail.read(next(iter(graph.outputs()))))


class _Trail:
    """What the nodes seen so far came to, and the steps that were left to do."""

    def __init__(self, module: torch.jit.ScriptModule, training: bool) -> None:
        self.values: dict[str, Any] = {}
        self.steps: list[Step] = []
        self._module = module
        self._training = training
        self._nodes_followed = 0

    def read(self, value: Value) -> Any:
        """What a value of the graph stands for: a constant or a symbol."""
        return self.values[value.debugName()]

    def follow(self, block: Block) -> None:
        """Run the nodes of a block on symbols, in order. Raises UndecidableError."""
        for node in block.nodes():
            self._nodes_followed += 1
            if self._nodes_followed > _MAX_STEPS:
                raise UndecidableError("the graph is too long for a leaf")
            self._node(node)

    def _node(self, node: Node) -> None:
        kind = node.kind()
        if kind == "aten::warn":
            return
        if kind == "prim::Constant":
            self._bind(node, node.output().toIValue())
        elif kind == "prim::GetAttr":
            self._bind(node, self._attribute(node))
        elif kind == "prim::If":
            self._branch(node)
        elif kind == "prim::Loop":
            self._skip_if_harmless(node)
        elif kind == "prim::RaiseException":
            raise UndecidableError("the graph always raises")
        elif kind in _PASSED_ON:
            self._bind(node, _PASSED_ON[kind]([self.read(value) for value in node.inputs()]))
        elif kind in _CHECKS and node.output().type().kind() in _CHECKED_TYPES:
            arguments = [self.read(value) for value in node.inputs()]
            decide = _DECIDED.get(kind)
            self._bind(node, decide(arguments) if decide and _all_known(arguments) else UNKNOWN)
        elif kind.startswith("aten::") and node.outputsSize() == 1:
            self._step(node)
        else:
            raise UndecidableError(f"{kind} in a leaf")

    def _bind(self, node: Node, value: Any) -> None:
        self.values[node.output().debugName()] = value

    def _attribute(self, node: Node) -> Any:
        if self.read(node.input()) != SELF:
            raise UndecidableError("a leaf has no children")
        name = node.s("name")
        if name == "training":
            return self._training
        value = self._module._c.getattr(name)
        return Symbol(f"tensor:{name}") if isinstance(value, torch.Tensor) else value

    def _step(self, node: Node) -> None:
        if node.output().type().kind() != "TensorType":
            raise UndecidableError(f"{node.kind()} in a leaf")
        names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
        arguments = dict(zip(names, [self.read(value) for value in node.inputs()], strict=True))
        self._bind(node, Symbol(f"result:{len(self.steps)}"))
        self.steps.append(Step(node.kind(), arguments))

    def _branch(self, node: Node) -> None:
        condition = self.read(node.input())
        if not _is_known(condition):
            self._skip_if_harmless(node)
            return
        arm = list(node.blocks())[0 if condition else 1]
        self.follow(arm)
        for value, result in zip(node.outputs(), arm.outputs(), strict=True):
            self.values[value.debugName()] = self.read(result)

    def _skip_if_harmless(self, node: Node) -> None:
        # A check of the input's shape may raise; the eager class has its own. Anything else could change the result.
        for block in node.blocks():
            for inner in block.nodes():
                if inner.kind() in ("prim::If", "prim::Loop"):
                    self._skip_if_harmless(inner)
                elif inner.kind() not in _CHECKS:
                    raise UndecidableError(f"{inner.kind()} under a condition that depends on the input")
        for value in node.outputs():
            if value.type().kind() not in ("IntType", "BoolType", "NoneType"):
                raise UndecidableError(f"a {value.type().annotation_str} that depends on a condition")
            self.values[value.debugName()] = UNKNOWN


def _is_known(value: Any) -> bool:
    return not isinstance(value, Symbol) and not (isinstance(value, list) and any(map(_is_symbol, value)))


def _is_symbol(value: Any) -> bool:
    return isinstance(value, Symbol)


def _all_known(values: list[Any]) -> bool:
    return all(_is_known(value) for value in values)


def _is(values: list[Any]) -> Any:
    if UNKNOWN in values:
        return UNKNOWN
    # A tensor is never None, whatever it holds.
    return values[0] is None and values[1] is None if None in values else UNKNOWN


def _is_not(values: list[Any]) -> Any:
    same = _is(values)
    return same if same is UNKNOWN else not same


def _list_with_default(values: list[Any]) -> Any:
    return values[0] if _is_known(values[0]) and None not in values[0] else UNKNOWN


_PASSED_ON: dict[str, Callable[[list[Any]], Any]] = {
    "aten::__is__": _is,
    "aten::__isnot__": _is_not,
    "aten::list_with_default": _list_with_default,
    "prim::ListConstruct": list,
    "prim::TupleConstruct": tuple,
    "prim::unchecked_cast": lambda values: values[0],
}
_DECIDED: dict[str, Callable[[list[Any]], Any]] = {
    "aten::__not__": lambda values: not values[0],
    "aten::eq": lambda values: values[0] == values[1],
    "aten::ne": lambda values: values[0] != values[1],
    "aten::lt": lambda values: values[0] < values[1],
    "aten::le": lambda values: values[0] <= values[1],
    "aten::gt": lambda values: values[0] > values[1],
    "aten::ge": lambda values: values[0] >= values[1],
    "aten::len": lambda values: len(values[0]),
    "aten::__contains__": lambda values: values[1] in values[0],
}
_CHECKED_TYPES = ("IntType", "BoolType", "StringType", "ListType", "NoneType")
_NUMBERS = (
    "aten::__and__ aten::__derive_index aten::__getitem__ aten::__or__ aten::__range_length aten::add aten::dim "
    "aten::floordiv aten::format aten::list aten::mul aten::numel aten::remainder aten::size aten::slice aten::str "
    "aten::sub"
)
_GUARDS = "aten::warn prim::Constant prim::GetAttr prim::RaiseException prim::Uninitialized"
_CHECKS = frozenset([*_PASSED_ON, *_DECIDED, *_NUMBERS.split(), *_GUARDS.split()])

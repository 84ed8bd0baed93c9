"""Questions to an archive's graphs; everything here only reads."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

_MANGLE = re.compile(r"\.___torch_mangle_\d+")

# The bindings of torch._C carry no usable stubs for these: spelled out once, so signatures still say what they take.
Graph = Any
Block = Any
Node = Any
Value = Any


def type_name(module: torch.jit.ScriptModule) -> str:
    """Qualified name of the module's TorchScript class, mangled as in the archive: one name, one set of graphs."""
    return str(module._c.qualified_name)


def bare_name(qualified_name: str) -> str:
    """A qualified name as its author wrote it, without `___torch_mangle_N`."""
    return _MANGLE.sub("", qualified_name)


def method_names(module: torch.jit.ScriptModule) -> list[str]:
    """The methods compiled into a module's TorchScript class, property getters included."""
    return list(module._c._method_names())


def method_graph(module: torch.jit.ScriptModule, method: str) -> Graph:
    """The graph of one compiled method, its calls not inlined."""
    return module._c._get_method(method).graph


def inlined(graph: Graph) -> Graph:
    """A copy with every called method and function pasted in."""
    copy = graph.copy()
    torch._C._jit_pass_inline(copy)
    return copy


def nodes_of(block: Block) -> Iterator[Node]:
    """Every node of a graph or block, nested ones after the node that holds them."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes_of(inner)


def is_function(value: Value) -> bool:
    """Whether a value is one of the archive's free functions, to be called."""
    return value.type().kind() == "FunctionType"


def is_module(value: Value) -> bool:
    """Whether a value is an object of a class of the archive: a module, or the context of a `with`."""
    return value.type().kind() == "ClassType" and value.type().annotation_str.startswith("__torch__.")


def is_constant(value: Value) -> bool:
    """Whether a value is known from the graph alone; functions do not count."""
    return value.node().kind() == "prim::Constant" and not is_function(value)


def block_uses(block: Block) -> Counter[str]:
    """How often each value is consumed by the block's own nodes and results, nested blocks not counted."""
    uses = Counter(value.debugName() for node in block.nodes() for value in node.inputs())
    uses.update(value.debugName() for value in block.outputs())
    return uses


def same_graph(first: Graph, second: Graph) -> bool:
    """Whether two methods do the same, names of values and source positions aside."""
    return _canonical(first) == _canonical(second)


def _canonical(graph: Graph) -> tuple[str, list[str]]:
    # The printed form abbreviates functions and tensor constants, so they are compared on their own.
    canonical = torch._C._jit_pass_canonicalize(graph, False)
    constants = [node.output() for node in nodes_of(canonical) if node.kind() == "prim::Constant"]
    hidden = [value.type().annotation_str for value in constants if is_function(value)]
    hidden += [repr(value.toIValue().tolist()) for value in constants if value.type().kind() == "TensorType"]
    return str(canonical.str(False)), hidden


def modules_by_type(root: torch.jit.ScriptModule) -> Mapping[str, torch.jit.ScriptModule]:
    """One module for each TorchScript class in the tree: those of a class have the same graphs."""
    modules = cast(Iterator[torch.jit.ScriptModule], root.modules())
    return {type_name(module): module for module in modules}


def called_methods(root: torch.jit.ScriptModule) -> Mapping[str, frozenset[str]]:
    """For each TorchScript class the methods that *other* classes call on it."""
    called: defaultdict[str, set[str]] = defaultdict(set)
    for caller, module in modules_by_type(root).items():
        for method in method_names(module):
            for node in nodes_of(method_graph(module, method)):
                if node.kind() == "prim::CallMethod":
                    callee = next(node.inputs()).type().annotation_str
                    if callee != caller:
                        called[callee].add(node.s("name"))
    called[type_name(root)].add("forward")
    return {callee: frozenset(names) for callee, names in called.items()}

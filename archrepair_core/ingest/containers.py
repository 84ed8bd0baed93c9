"""`torch.nn` containers rebuilt as the real classes, where the archive's graphs prove that they are."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from archrepair_core.ingest.graphs import Graph, bare_name, method_graph, method_names, type_name

# What Python asks of a container that TorchScript compiles as its methods.
HELD_METHODS = frozenset({"__contains__", "__len__"})
_CONTAINERS = "__torch__.torch.nn.modules.container."
# Containers without a forward of their own only hold their children.
_HOLDERS: dict[str, Callable[[], nn.Module]] = {"ModuleList": nn.ModuleList, "ModuleDict": nn.ModuleDict}


def build_container(original: torch.jit.ScriptModule, alias: Callable[[str, str], str]) -> nn.Module | None:
    """An empty `nn.Sequential`, `ModuleList` or `ModuleDict` if `original` is one, else None.

    `alias` tells which method of a TorchScript class is its `forward`.
    """
    qualified = bare_name(type_name(original))
    class_name = qualified.removeprefix(_CONTAINERS)
    if class_name == qualified or _has_tensors(original):
        return None
    forwards = [method for method in method_names(original) if alias(type_name(original), method) == "forward"]
    if class_name in _HOLDERS and not forwards:
        return _HOLDERS[class_name]()
    if class_name != "Sequential" or not forwards:
        return None
    children = [name for name, _ in original.named_children()]
    chained = _is_chain(method_graph(original, forwards[0]), children, alias)
    return nn.Sequential() if chained else None


def _has_tensors(original: torch.jit.ScriptModule) -> bool:
    return any(True for _ in original.named_parameters(recurse=False)) or any(
        True for _ in original.named_buffers(recurse=False)
    )


def _is_chain(graph: Graph, children: Iterable[str], alias: Callable[[str, str], str]) -> bool:
    """Whether the graph feeds one tensor through every child in order and does nothing else."""
    inputs = list(graph.inputs())
    if len(inputs) != 2 or inputs[1].type().kind() != "TensorType":
        return False
    current = inputs[1].debugName()
    called = []
    for node in graph.nodes():
        if node.kind() == "prim::GetAttr" and node.input().debugName() == inputs[0].debugName():
            continue
        if node.kind() != "prim::CallMethod" or node.output().type().kind() != "TensorType":
            return False
        owner, *arguments = node.inputs()
        is_next = [argument.debugName() for argument in arguments] == [current]
        if not is_next or alias(owner.type().annotation_str, node.s("name")) != "forward":
            return False
        called.append(owner.node().s("name") if owner.node().kind() == "prim::GetAttr" else "")
        current = node.output().debugName()
    return called == list(children) and next(iter(graph.outputs())).debugName() == current

"""The archive's tensors as parameters and buffers of the rebuilt model."""

import ctypes
import sys
from typing import Any

import torch
from torch import nn

from archrepair_core.ingest.graphs import method_graph, method_names, nodes_of


class TensorCopies:
    """Copies storages once each, so that tied weights and views stay tied and the archive stays as it was delivered."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._parameters: dict[tuple[Any, ...], nn.Parameter] = {}

    def tensor(self, original: torch.Tensor) -> torch.Tensor:
        """A copy of `original` that shares its storage with the copies of all tensors that shared it there."""
        if original.layout != torch.strided:
            return original.detach().clone()
        storage = original.untyped_storage()
        key = storage.data_ptr()
        if key == 0:  # empty or meta: nothing to share
            return original.detach().clone()
        if key not in self._storages:
            self._storages[key] = storage.clone()
        copy = torch.empty(0, dtype=original.dtype, device=original.device)
        return copy.set_(self._storages[key], original.storage_offset(), original.size(), original.stride())

    def parameter(self, original: torch.Tensor) -> nn.Parameter:
        """One Parameter object for all names of a tied weight."""
        key = (original.data_ptr(), original.dtype, original.shape, original.stride())
        if original.data_ptr() == 0 or key not in self._parameters:
            self._parameters[key] = nn.Parameter(self.tensor(original), requires_grad=original.requires_grad)
        return self._parameters[key]


def fill_tensors(module: nn.Module, original: torch.jit.ScriptModule, copies: TensorCopies) -> None:
    """Give `module` the parameters and buffers of `original` itself (not of its children), under the same names."""
    for name, tensor in original.named_parameters(recurse=False, remove_duplicate=False):
        module._parameters[name] = copies.parameter(tensor)
    for name, buffer in original.named_buffers(recurse=False, remove_duplicate=False):
        module._buffers[name] = copies.tensor(buffer)
    if isinstance(module, nn.RNNBase):
        # Its own list of its parameters, made when it was built.
        module._flat_weights = [module._parameters[name] for name in module._flat_weights_names]


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether both hold the same bytes in the same type and shape: NaN equals itself, 0.0 is not -0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    bits = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*bits)


def return_freed_memory() -> None:
    """Give freed memory back to the system: the C library keeps blocks of up to 32 MB, which most weights are."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc only
        trim(0)


def tensor_lists(original: torch.jit.ScriptModule) -> dict[str, list[str]]:
    """Attributes of `original` that list its own parameters or buffers (`nn.LSTM._flat_weights`), and the names listed.

    The lists in an archive are copies by value: training the parameter would leave them behind.
    """
    tensors = [*original.named_parameters(recurse=False), *original.named_buffers(recurse=False)]
    names = {_place(tensor): name for name, tensor in reversed(tensors)}
    lists = {}
    for attribute in _list_attributes(original):
        places = [_place(tensor) for tensor in original._c.getattr(attribute)]
        if places and all(place in names for place in places):
            lists[attribute] = [names[place] for place in places]
    return lists


def _list_attributes(original: torch.jit.ScriptModule) -> list[str]:
    graphs = [method_graph(original, method) for method in method_names(original)]
    reads = [node for graph in graphs for node in nodes_of(graph) if node.kind() == "prim::GetAttr"]
    lists = {node.s("name") for node in reads if node.output().type().annotation_str == "List[Tensor]"}
    return sorted(name for name in lists if original._c.hasattr(name))


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

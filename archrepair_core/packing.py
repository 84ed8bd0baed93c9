"""What a forward knows at one point, as a single tensor with a row per input, and back.

Whatever comes from the inputs is packed; what belongs to the model is looked up again; what never changes is kept.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CONSTANTS = (bool, int, float, str, torch.device, torch.dtype, torch.layout, torch.memory_format, type(None))


class Unpackable(Exception):
    """A value that is neither per input, nor the model's own, nor always the same."""


@dataclass(frozen=True)
class _Slot:
    """A tensor with one row per input; `shape` is a row's."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Owned:
    """A parameter or buffer of the model, by its name."""

    name: str


@dataclass(frozen=True)
class _Fixed:
    """The same value every time, or the forward is another one."""

    value: Any


@dataclass(frozen=True)
class Packing:
    """How nested values become one tensor: `pack` and `unpack` are inverses, up to the batch size.

    One tensor alone is packed as it is; several become the columns of [N, D].
    """

    structure: Any
    slots: tuple[_Slot, ...]

    def pack(self, values: Any, batch: int) -> Tensor:
        """`values` of `batch` inputs. Raises Unpackable if they are not what the packing was made from."""
        found: dict[int, Tensor] = {}
        _collect(self.structure, values, found, batch)
        tensors = [found[slot.index] for slot in self.slots]
        return tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten(1) for tensor in tensors], 1)

    def unpack(self, packed: Tensor, model: nn.Module) -> Any:
        """The values again, with new lists and dicts: a forward may change them."""
        # Caches hold float32 for models of any type.
        packed = packed.to(self.slots[0].dtype)
        if len(self.slots) == 1:
            return _restore(self.structure, [packed], model)
        columns = packed.split([math.prod(slot.shape) for slot in self.slots], 1)
        # Copies: autograd lets no forward change one of several views in place, as a residual block does its sum.
        pairs = zip(columns, self.slots, strict=True)
        return _restore(self.structure, [column.reshape(-1, *slot.shape).clone() for column, slot in pairs], model)


def packing_of(values: Any, batch: int, model: nn.Module) -> Packing:
    """How to pack `values`, seen for `batch` inputs. Raises Unpackable, naming what stands in the way."""
    owned = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    slots: dict[int, _Slot] = {}

    def leaf(value: Any) -> Any:
        if isinstance(value, CONSTANTS):
            return _Fixed(value)
        if not isinstance(value, Tensor):
            raise Unpackable(f"a {type(value).__name__} is needed after the block")
        if id(value) in owned:
            return _Owned(owned[id(value)])
        if value.is_floating_point() and value.ndim and len(value) == batch:
            return slots.setdefault(id(value), _Slot(len(slots), tuple(value.shape[1:]), value.dtype))
        return _Fixed(value.detach())

    structure = _mapped(values, leaf)
    ordered = tuple(sorted(slots.values(), key=lambda slot: slot.index))
    if not ordered:
        raise Unpackable("no floating-point tensor with a row per input enters the block")
    if len({slot.dtype for slot in ordered}) > 1:
        raise Unpackable("tensors of different types are needed after the block")
    return Packing(structure, ordered)


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same nesting of tuples, lists and dicts with `leaf` applied to what they hold."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, leaf) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_mapped(item, leaf) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return leaf(value)


def _collect(structure: Any, value: Any, found: dict[int, Tensor], batch: int) -> None:
    match structure:
        case _Slot(index, shape, dtype):
            if not isinstance(value, Tensor) or value.shape != (batch, *shape) or value.dtype != dtype:
                raise Unpackable(f"a tensor that had rows of shape {list(shape)} has another shape for other inputs")
            found[index] = value
        case _Fixed(expected):
            if not _same(expected, value):
                raise Unpackable(f"a value that was {_shown(expected)} is {_shown(value)} for other inputs")
        case dict() | list() | tuple():
            if type(structure) is not type(value) or len(structure) != len(value):
                raise Unpackable(f"a {type(structure).__name__} has another length for other inputs")
            for key in structure if isinstance(structure, dict) else range(len(structure)):
                _collect(structure[key], value[key], found, batch)


def _restore(structure: Any, tensors: list[Tensor], model: nn.Module) -> Any:
    def leaf(part: Any) -> Any:
        match part:
            case _Slot(index=index):
                return tensors[index]
            case _Owned(name=name):
                owner, _, attribute = name.rpartition(".")
                return getattr(model.get_submodule(owner), attribute)
        return part.value

    return _mapped(structure, leaf)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.shape == second.shape and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


def _shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)

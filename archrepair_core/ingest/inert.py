"""Inert stand-ins for what an archive's pickles describe, and the errors about them. Nothing here can act."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import STORAGE_BYTES

_HINT = "Export the model again with torch.jit.save(torch.jit.script(model.eval()), 'model.pt') and upload that file."


@dataclass(frozen=True)
class Global:
    """A name the pickle refers to; never resolved to anything."""

    module: str
    name: str

    @property
    def is_own_class(self) -> bool:
        """Whether it names a class of the archive's own code."""
        return re.fullmatch(r"__torch__(\.[A-Za-z_][A-Za-z0-9_]*)+", str(self)) is not None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """Raw memory named by `key`: the record `<folder>/<key>` must hold exactly `num_bytes`."""

    key: str
    dtype: str
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Size of the record that holds the storage."""
        return self.num_elements * STORAGE_BYTES[self.dtype]


@dataclass(frozen=True)
class Tensor:
    """A strided view that lies inside its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool

    @property
    def num_elements(self) -> int:
        """How many numbers the shape holds, whatever the strides."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Object:
    """An instance of the archive's class `class_name` with its attributes."""

    class_name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Device:
    """A device constant; the checked copy is loaded on the CPU all the same."""

    name: str


@dataclass(frozen=True)
class EnumMember:
    """A member of an enum of the archive, by the names of class and member."""

    class_name: str
    value: Any


def iterate_values(root: Any) -> Iterator[Any]:
    """Every distinct value below `root`, each shared container once; `root` included."""
    stack, seen = [root], set[int]()
    while stack:
        value = stack.pop()
        children = children_of(value)
        if children:
            if id(value) in seen:
                continue
            seen.add(id(value))
            stack.extend(children)
        yield value


def children_of(value: Any) -> list[Any]:
    """The values directly inside a container."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, Object):
        return list(value.attributes.values())
    return []


def describe(value: Any) -> str:
    """A short text for messages; never the inside of a container, which may be exponentially large when printed."""
    if isinstance(value, str | int | float | Global):
        return repr(str(value)[:80])
    return f"a {type(value).__name__}"


def unsafe_pickle(name: str, what: str) -> ModelError:
    """The error for anything torch.jit.save does not write; `name` is the record."""
    return ModelError("unsafe_pickle", f"{name} holds {what}; torch.jit.save does not write that.", hint=_HINT)


def tensor_geometry(detail: str) -> ModelError:
    """The error for a tensor that would read outside its record."""
    return ModelError("tensor_geometry", detail, hint=_HINT)


def quantized(detail: str) -> ModelError:
    """The error for an int8 or otherwise packed model."""
    hint = (
        "Repair the float model, then quantize the repaired one: torch.jit.save(torch.jit.script(float_model), path)."
    )
    return ModelError("quantized", detail, hint=hint)

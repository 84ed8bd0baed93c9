"""A pickle reader that builds inert values only: no class is looked up, nothing is called, no tensor byte is read.

It knows exactly the opcodes and globals torch.jit.save writes, with the stack rules of torch's own C++ reader, and is
stricter wherever that reader trusts its input: types, memo indices, tensor geometry, sharing and depth.
"""

import re
import struct
from collections.abc import Callable
from typing import Any

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import STORAGE_BYTES
from archrepair_core.ingest.inert import (
    Device,
    EnumMember,
    Global,
    Object,
    Storage,
    Tensor,
    children_of,
    describe,
    quantized,
    tensor_geometry,
    unsafe_pickle,
)

_MAX_DEPTH = 150
_MAX_DIMENSIONS = 16
# A broadcast view is larger than its storage; beyond this it is a memory bomb for whoever copies it.
_MAX_BROADCAST_ELEMENTS = 1 << 20
_MAX_INT = 1 << 62
_KEY = re.compile(r"[0-9]{1,9}")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu)(:[0-9]{1,3})?")


def read_pickle(data: bytes, name: str) -> Any:
    """The inert value in `data`; `name` is for messages.

    Raises ModelError: `unsafe_pickle` for anything torch.jit.save does not write, `tensor_geometry` for a tensor
    outside its storage, `quantized` for a quantized tensor.
    """
    machine = _Machine(data, name)
    value = machine.run()
    _check_depth(value, name)
    return value


def _check_depth(root: Any, name: str) -> None:
    """Refuses deep nesting (torch's reader and destructors recurse without limit), cycles and unused references."""
    height: dict[int, int] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        value, is_leaving = stack.pop()
        children = children_of(value)
        if isinstance(value, Global | Storage):
            raise unsafe_pickle(name, f"a bare reference to {describe(value)}")
        if is_leaving:
            height[id(value)] = 1 + max((height.get(id(child), 0) for child in children), default=0)
        elif children and id(value) not in height:
            height[id(value)] = _MAX_DEPTH  # until it is left; meeting it again before that is a cycle
            stack.append((value, True))
            stack.extend((child, False) for child in children)
        if height.get(id(value), 0) > _MAX_DEPTH:
            raise unsafe_pickle(name, f"values nested deeper than {_MAX_DEPTH}")


class _Machine:
    """The pickle virtual machine: a stack, marks into it and a memo."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        # Containers that may not grow any more: they are shared, or their element type was checked.
        self.sealed: dict[int, Any] = {}

    def run(self) -> Any:
        """The value the pickle stands for; `unsafe_pickle` at the first thing that `torch.jit.save` does not write."""
        if self.take(2) != b"\x80\x02":
            raise self.unsafe("a pickle protocol other than 2")
        while (opcode := self.take(1)) != b".":
            action = _OPCODES.get(opcode)
            if action is None:
                raise self.unsafe(f"opcode {opcode!r} at byte {self.position - 1}")
            action(self)
        if self.marks or len(self.stack) != 1 or self.position != len(self.data):
            raise self.unsafe("an unbalanced stack or bytes after the end")
        return self.stack[0]

    def unsafe(self, what: str) -> ModelError:
        """The error to raise: `what` was found in this file."""
        return unsafe_pickle(self.name, what)

    def take(self, num_bytes: int) -> bytes:
        """The next bytes, all of them or the error."""
        taken = self.data[self.position : self.position + num_bytes]
        if len(taken) != num_bytes:
            raise self.unsafe("a pickle that ends early")
        self.position += num_bytes
        return taken

    def unpack(self, layout: str) -> Any:
        """The next number, in the `layout` of the module struct."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The text up to the next line feed, which must not be far."""
        end = self.data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise self.unsafe("a global without end")
        text = self.take(end + 1 - self.position)[:-1]
        return self.decode(text)

    def decode(self, raw: bytes) -> str:
        """UTF-8, or the error."""
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.unsafe("text that is not UTF-8") from error

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the value on top of the stack, but none from below the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.unsafe("a pop from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Take the last mark and all that was pushed since."""
        if not self.marks:
            raise self.unsafe("an end without a mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        """The container on top of the stack, left there: of this very `kind`, and free to grow."""
        value = self.pop()
        self.push(value)
        if type(value) is not kind:
            raise self.unsafe(f"items for a {type(value).__name__} where a {kind.__name__} belongs")
        if id(value) in self.sealed:
            raise self.unsafe("a container that grows after it was finished")
        return value

    def seal(self, value: Any) -> Any:
        """Let this container grow no more."""
        self.sealed[id(value)] = value
        return value


def _push_binunicode(machine: _Machine) -> None:
    machine.push(machine.decode(machine.take(machine.unpack("<I"))))


def _push_long1(machine: _Machine) -> None:
    if machine.unpack("<B") != 8:
        raise machine.unsafe("an integer that is not 64 bits wide")
    machine.push(machine.unpack("<q"))


def _push_global(machine: _Machine) -> None:
    reference = Global(machine.line(), machine.line())
    key = (reference.module, reference.name)
    is_storage = reference.module == "torch" and reference.name in STORAGE_BYTES
    if reference.name.startswith("QInt") or "qtensor" in reference.name:
        raise quantized(f"{machine.name} holds quantized tensors ({reference}).")
    if key not in _BUILDERS and not is_storage and not reference.is_own_class:
        raise machine.unsafe(f"the global {str(reference)!r}")
    machine.push(reference)


def _memoize(machine: _Machine, index: int) -> None:
    value = machine.pop()
    machine.push(value)
    if isinstance(value, list | dict):
        machine.seal(value)
    # torch allocates memo slots up to the index: 2**32 of them would fill 64 GB.
    if index > len(machine.memo):
        raise machine.unsafe(f"memo index {index} after {len(machine.memo)} entries")
    if index == len(machine.memo):
        machine.memo.append(value)
    else:
        machine.memo[index] = value


def _recall(machine: _Machine, index: int) -> None:
    if index >= len(machine.memo):
        raise machine.unsafe(f"memo index {index} of {len(machine.memo)}")
    machine.push(machine.memo[index])


def _push_tuple(machine: _Machine, size: int) -> None:
    items = [machine.pop() for _ in range(size)]
    machine.push(tuple(reversed(items)))


def _append_items(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.top(list).extend(items)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.top(dict)
    if len(items) % 2:
        raise machine.unsafe("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, float, bool) or key in target:
            raise machine.unsafe(f"the dictionary key {describe(key)} twice or of a type that is not allowed")
        target[key] = value


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _new_object(machine: _Machine) -> None:
    """Leaves the class on the stack, as torch does: the object is made by the BUILD that must follow."""
    arguments = machine.pop()
    reference = machine.top(Global)
    if arguments != () or not reference.is_own_class:
        raise machine.unsafe(f"a new {reference} with arguments {describe(arguments)}")


def _build(machine: _Machine) -> None:
    state, reference = machine.pop(), machine.pop()
    if not isinstance(reference, Global) or not reference.is_own_class:
        raise machine.unsafe(f"state for {describe(reference)}, which is no class of the archive")
    if type(state) is not dict or not all(isinstance(key, str) for key in state):
        raise machine.unsafe(f"state for {reference} that is no attribute dictionary (__setstate__)")
    machine.push(Object(str(reference), dict(state)))


def _reduce(machine: _Machine) -> None:
    arguments, reference = machine.pop(), machine.pop()
    if not isinstance(reference, Global):
        raise machine.unsafe(f"a call of {describe(reference)}")
    if reference.is_own_class:
        if type(arguments) not in (str, int, float):
            raise machine.unsafe(f"an enum member {reference} of value {describe(arguments)}")
        machine.push(EnumMember(str(reference), arguments))
        return
    arity, builder = _BUILDERS.get((reference.module, reference.name), (-1, _empty_hooks))
    if type(arguments) is not tuple or len(arguments) != arity:
        raise machine.unsafe(f"a call of {str(reference)!r} with {describe(arguments)}")
    machine.push(builder(machine, *arguments))


def _load_storage(machine: _Machine) -> None:
    match machine.pop():
        case ("storage", Global(module="torch", name=str(dtype)), str(key), str(device), int(count)) if (
            dtype in STORAGE_BYTES and _KEY.fullmatch(key) and _DEVICE.fullmatch(device) and 0 <= count < _MAX_INT
        ):
            machine.push(Storage(key, dtype, count))
        case other:
            raise machine.unsafe(f"a storage reference {describe(other)}")


def _rebuild_tensor(machine: _Machine, *arguments: Any) -> Tensor:
    storage, offset, shape, stride, requires_grad, hooks = arguments
    is_typed = isinstance(storage, Storage) and type(offset) is int and type(requires_grad) is bool and hooks is None
    if not is_typed or not _is_sizes(shape) or not _is_sizes(stride) or len(shape) != len(stride) or offset < 0:
        raise machine.unsafe("a tensor with malformed arguments")
    tensor = Tensor(storage, offset, shape, stride, requires_grad)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    is_empty = tensor.num_elements == 0
    is_inflated = tensor.num_elements > max(storage.num_elements, _MAX_BROADCAST_ELEMENTS)
    if is_inflated or (not is_empty and last >= storage.num_elements) or offset > storage.num_elements:
        detail = f"A tensor in {machine.name} of shape {list(shape)}, stride {list(stride)} and offset {offset} lies "
        detail += f"outside its storage {storage.key!r} of {storage.num_elements} elements."
        raise tensor_geometry(detail)
    return tensor


def _is_sizes(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < _MAX_INT for size in value)
    )


def _empty_hooks(machine: _Machine) -> None:
    """`collections.OrderedDict()`: a tensor's backward hooks, which TorchScript never stores."""


def _typed_list(kind: type) -> Callable[[_Machine, Any], Any]:
    def build(machine: _Machine, items: Any) -> Any:
        if type(items) is not list or not all(type(item) is kind for item in items):
            raise machine.unsafe(f"a list of something else than {kind.__name__}")
        return machine.seal(items)

    return build


def _restore_type(machine: _Machine, value: Any, type_name: Any) -> Any:
    """The container itself; its type string may only name types, as torch parses it like code."""
    if type(value) not in (list, dict) or type(type_name) is not str:
        raise machine.unsafe("a type tag on something that is no container")
    if not re.fullmatch(r"(Dict|List)\[[A-Za-z0-9_.,\[\] ()]{1,500}\]", type_name) or "torch.classes" in type_name:
        raise machine.unsafe(f"the type tag {type_name[:80]!r}")
    return machine.seal(value)


def _build_device(machine: _Machine, name: Any) -> Device:
    if type(name) is not str or not _DEVICE.fullmatch(name):
        raise machine.unsafe(f"the device {describe(name)}")
    return Device(name)


def _build_complex(machine: _Machine, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise machine.unsafe("a malformed complex number")
    return complex(real, imaginary)


_BUILDERS: dict[tuple[str, str], tuple[int, Callable[..., Any]]] = {
    ("torch._utils", "_rebuild_tensor_v2"): (6, _rebuild_tensor),
    ("collections", "OrderedDict"): (0, _empty_hooks),
    ("torch.jit._pickle", "build_intlist"): (1, _typed_list(int)),
    ("torch.jit._pickle", "build_doublelist"): (1, _typed_list(float)),
    ("torch.jit._pickle", "build_boollist"): (1, _typed_list(bool)),
    ("torch.jit._pickle", "build_tensorlist"): (1, _typed_list(Tensor)),
    ("torch.jit._pickle", "restore_type_tag"): (2, _restore_type),
    ("torch", "device"): (1, _build_device),
    ("builtins", "complex"): (2, _build_complex),
}

_OPCODES: dict[bytes, Callable[[_Machine], None]] = {
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"K": lambda machine: machine.push(machine.unpack("<B")),
    b"M": lambda machine: machine.push(machine.unpack("<H")),
    b"J": lambda machine: machine.push(machine.unpack("<i")),
    b"G": lambda machine: machine.push(machine.unpack(">d")),
    b"\x8a": _push_long1,
    b"X": _push_binunicode,
    b"c": _push_global,
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push({}),
    b")": lambda machine: machine.push(()),
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b"t": lambda machine: machine.push(tuple(machine.pop_mark())),
    b"\x85": lambda machine: _push_tuple(machine, 1),
    b"\x86": lambda machine: _push_tuple(machine, 2),
    b"\x87": lambda machine: _push_tuple(machine, 3),
    b"e": _append_items,
    b"u": lambda machine: _set_items(machine, machine.pop_mark()),
    b"s": _set_item,
    b"q": lambda machine: _memoize(machine, machine.unpack("<B")),
    b"r": lambda machine: _memoize(machine, machine.unpack("<I")),
    b"h": lambda machine: _recall(machine, machine.unpack("<B")),
    b"j": lambda machine: _recall(machine, machine.unpack("<I")),
    b"Q": _load_storage,
    b"\x81": _new_object,
    b"b": _build,
    b"R": _reduce,
}

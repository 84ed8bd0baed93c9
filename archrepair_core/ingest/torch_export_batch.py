"""Which numbers of a program are the batch size, found by running it on shapes alone with a batch no model would have.

A dynamic export computes with the batch size; a static one has it baked into views and expansions as a constant. Both
end up the same way: every such number becomes `Batch(times)`, which the generated code reads off its input's shape.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import words
from archrepair_core.ingest.torch_export_graph import DTYPES, Step, names_in, run
from archrepair_core.ingest.torch_export_program import Dimension, Program, Ref

# A prime far from any width or image size: a multiple of it is a multiple of the batch.
MARK = 100_003
_META = torch.device("meta")
# How many steps may be tried in all, as a multiple of the program's length, before it is called unreadable.
_MAX_EFFORT = 12
# What shape inference raises on shapes that do not fit, or where a value would be needed.
_SHAPE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, KeyError, AttributeError)
_VIEWS = frozenset(["view", "reshape", "_unsafe_view"])
_FACTORIES = words("zeros ones full empty rand randn new_zeros new_ones new_full new_empty")
_FIXED_HINT = 'export it with a dynamic batch: dynamic_shapes=({0: torch.export.Dim("batch")},)'


@dataclass(frozen=True)
class Batch:
    """A number that is `times` the batch size."""

    times: int


@dataclass(frozen=True)
class Shaped:
    """The program with its batch sizes known: arguments of each step, and what each value's shape or number is.

    Multiples of `MARK` in `shapes` are multiples of the batch size.
    """

    arguments: tuple[Mapping[str, Any], ...]
    shapes: Mapping[str, tuple[int, ...] | int | float | bool]


def batch_of(program: Program) -> tuple[Dimension, frozenset[str]]:
    """The batch dimension, and the inputs that have it first. Raises ModelError `no_batch_dimension`."""
    first = [(name, shape[0]) for name, shape in program.input_shapes.items() if shape]
    if not first:
        detail = f"The program's inputs are {list(program.input_shapes)}, none of which has a batch dimension."
        raise ModelError("no_batch_dimension", detail, hint="Export the model on a batch of inputs, batch first.")
    batch = first[0][1]
    return batch, frozenset(name for name, dimension in first if dimension == batch)


def find_batch(program: Program, steps: list[Step], tensors: Mapping[str, Tensor]) -> Shaped:
    """Run the shapes of a program and name its batch sizes. Raises ModelError `fixed_batch_size`, naming the size."""
    search = _Search(program, steps, tensors)
    if search.succeeds():
        return Shaped(tuple(search.arguments), {name: _shape(value) for name, value in search.values.items()})
    raise fixed_batch_size(search.batch.size, f"{search.failure}")


def fixed_batch_size(size: int, why: str) -> ModelError:
    """The error for a program that only runs on batches of one size."""
    detail = f"The program was exported for batches of exactly {size}, and cannot be made to take others: {why}."
    return ModelError("fixed_batch_size", detail, hint=_FIXED_HINT)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


class _Search:
    """Depth first over what baked-in numbers may mean; most programs need no second try anywhere."""

    def __init__(self, program: Program, steps: list[Step], tensors: Mapping[str, Tensor]) -> None:
        self.batch, self._batched = batch_of(program)
        self.values = self._inputs(program, tensors)
        self.arguments: list[Mapping[str, Any]] = []
        self.failure = ""
        self._steps = steps
        self._effort = _MAX_EFFORT * len(steps) + 100

    def _inputs(self, program: Program, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for item in program.inputs:
            if item.kind == "tensor":
                sizes = [dimension.size for dimension in program.input_shapes[item.name]]
                if item.name in self._batched:
                    sizes[0] = MARK
                dtype = DTYPES[program.input_dtypes[item.name]]
                values[item.name] = torch.empty(sizes, dtype=dtype, device=_META)
            elif item.kind == "literal":
                values[item.name] = item.value
            else:
                values[item.name] = tensors[item.target].detach().to(_META)
        return values

    def succeeds(self) -> bool:
        """Whether some reading of the numbers gives shapes that fit throughout; leaves `arguments` and `values`."""
        open_choices: list[tuple[int, dict[str, Any], Iterator[Mapping[str, Any]]]] = []
        index, alternatives = 0, self._alternatives(0)
        while index < len(self._steps):
            before = dict(self.values)
            while not self._advance(index, alternatives):
                if not open_choices or self._effort <= 0:
                    return False
                index, before, alternatives = open_choices.pop()
                self.values = dict(before)
                del self.arguments[index:]
            open_choices.append((index, before, alternatives))
            index += 1
            alternatives = self._alternatives(index)
        return True

    def _alternatives(self, index: int) -> Iterator[Mapping[str, Any]]:
        if index == len(self._steps):
            return iter(())
        step = self._steps[index]
        return iter([named(step.arguments, self.values)]) if self.batch.symbol else self._readings(step)

    def _advance(self, index: int, alternatives: Iterator[Mapping[str, Any]]) -> bool:
        """Run a step by the next reading of its numbers under which it runs; False when there is none left."""
        for arguments in alternatives:
            self._effort -= 1
            try:
                run(self._steps[index], self.values, device=_META, arguments=_marked(arguments))
            except _SHAPE_ERRORS as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self.failure = f"{self._steps[index].operation.target}: {lines[0][:200]}"
                continue
            self.arguments.append(arguments)
            return True
        return False

    def _readings(self, step: Step) -> Iterator[Mapping[str, Any]]:
        """The step's arguments with baked-in batch sizes named, likeliest first."""
        arguments = named(step.arguments, self.values)
        size = self.batch.size
        source = next((self.values[v.name] for v in arguments.values() if isinstance(v, Ref) and v.name), None)
        shape = tuple(source.shape) if isinstance(source, Tensor) else ()
        for name, value in arguments.items():
            readings: list[Any] = []
            if step.kind in _VIEWS and name in ("size", "shape"):
                readings = list(_view_readings(shape, value, size))
            elif step.kind in ("expand", "broadcast_to") and isinstance(value, list):
                readings = _expansion_readings(shape, value, size)
            elif (step.kind in _FACTORIES and name == "size") or name == "repeats":
                readings = _factory_readings(value, size)
            elif step.kind == "arange" and name == "end" and value == size > 1:
                readings = [Batch(1), value]
            elif step.kind in ("slice", "narrow") and name in ("end", "length") and value == size:
                dimension = int(step.arguments.get("dim", 0))
                readings = [Batch(1)] if shape and shape[dimension] == MARK else [value]
            if readings:
                return iter([{**arguments, name: reading} for reading in readings])
        return iter([arguments])


def named(value: Any, values: Mapping[str, Any]) -> Any:
    """Arguments with every computed number that is a multiple of the batch replaced by what it is."""
    if isinstance(value, dict):
        return {name: named(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [named(item, values) for item in value]
    if isinstance(value, Ref):
        number = values.get(value.name)
        if type(number) is int and number and number % MARK == 0:
            return Batch(number // MARK)
    return value


def _marked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _marked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return value.times * MARK if isinstance(value, Batch) else value


def _view_readings(shape: tuple[int, ...], sizes: list[Any], batch: int) -> Iterator[list[Any]]:
    """Where in a view's sizes the batch may be: in memory order it has as much before it as in the tensor viewed.

    Inside a size that is `inner` times the batch it may come first or last; first is likelier.
    """
    axis = next((i for i, size in enumerate(shape) if size % MARK == 0 and size), None)
    if axis is None or any(isinstance(size, Ref | Batch) for size in sizes):
        yield sizes
        return
    before, inner = prod(shape[:axis]), shape[axis] // MARK
    elements = prod(size // MARK * batch if size % MARK == 0 else size for size in shape)
    known = prod(size for size in sizes if size != -1)
    full = [elements // known if size == -1 and known else size for size in sizes]
    ranked: list[tuple[int, int]] = []
    for position, size in enumerate(full):
        ahead = prod(full[:position])
        if not size or size % batch:
            continue
        if ahead in (before, before * inner):
            ranked.append((0 if ahead == before else 1, position))
        elif ahead < before * inner <= ahead * size:
            ranked.append((2, position))
    for _, position in sorted(ranked):
        named_size = -1 if sizes[position] == -1 else Batch(full[position] // batch)
        yield [*sizes[:position], named_size, *sizes[position + 1 :]]
    yield sizes


def _expansion_readings(shape: tuple[int, ...], sizes: list[Any], batch: int) -> list[Any]:
    """Where the tensor already has the batch, the size is it; where it has one row, a size that equals it may be."""
    offset = len(sizes) - len(shape)
    certain: list[Any] = list(sizes)
    for position, size in enumerate(sizes):
        own = shape[position - offset] if position >= offset else 1
        if type(size) is int and size > 0 and own % MARK == 0 and size == own // MARK * batch:
            certain[position] = Batch(own // MARK)
    place = next((i for i, size in enumerate(certain) if size == batch), None)
    if place is None:
        return [certain]
    replaced = [*certain[:place], Batch(1), *certain[place + 1 :]]
    # With a batch of one, a size of one says nothing and mostly means nothing.
    return [replaced, certain] if batch > 1 else [certain, replaced]


def _factory_readings(sizes: Any, batch: int) -> list[Any]:
    if not isinstance(sizes, list):
        return [sizes]
    place = next((i for i, size in enumerate(sizes) if size == batch), None)
    if place is None:
        return [sizes]
    replaced = [*sizes[:place], Batch(1), *sizes[place + 1 :]]
    return [replaced, sizes] if batch > 1 else [sizes, replaced]


def used_names(arguments: Mapping[str, Any]) -> list[str]:
    """Values that named arguments still read."""
    return [name for value in arguments.values() for name in _names(value)]


def _names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _names(item)]
    return [] if isinstance(value, Batch) else names_in(value)

"""The operators of a checked program as torch's own, and how to run them: what the file says, taken literally."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import words
from archrepair_core.ingest.torch_export_program import RE_EXPORT, Member, Operation, Ref

DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        1: torch.uint8,
        2: torch.int8,
        3: torch.int16,
        4: torch.int32,
        5: torch.int64,
        6: torch.float16,
        7: torch.float32,
        8: torch.float64,
        10: torch.complex64,
        11: torch.complex128,
        12: torch.bool,
        13: torch.bfloat16,
    }
)
MEMORY_FORMATS: Mapping[int, torch.memory_format] = MappingProxyType(
    {
        1: torch.contiguous_format,
        2: torch.channels_last,
        3: torch.channels_last_3d,
        4: torch.preserve_format,
    }
)
# They stop a run whose sizes or types are not those of the example; our own comparison does that better.
CHECKS = words("_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size")
_SIZE_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "math.trunc": math.trunc,
        "torch.sym_float": float,
        "torch.sym_int": int,
        "torch.sym_max": max,
        "torch.sym_min": min,
        "torch.sym_not": operator.not_,
    }
)


@dataclass(frozen=True)
class Step:
    """An operation with what computes it; `arguments` by name, None for the operators of Python that count sizes."""

    operation: Operation
    function: Callable[..., Any]
    schema: Any
    arguments: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """`conv2d` for `torch.ops.aten.conv2d.default`, `mul` for `_operator.mul`."""
        parts = self.operation.target.split(".")
        return parts[-2] if self.schema is not None else parts[-1]


def resolve(operations: tuple[Operation, ...]) -> list[Step]:
    """The program's steps, those that only check left out. Raises ModelError for operators this torch does not have."""
    steps = [_step(operation) for operation in operations]
    return [step for step in steps if step.kind not in CHECKS]


def _step(operation: Operation) -> Step:
    if not operation.target.startswith("torch.ops."):
        last = operation.target.rpartition(".")[2]
        function = _SIZE_FUNCTIONS.get(operation.target) or getattr(operator, last)
        return Step(operation, function, None, dict(operation.inputs))
    _, _, _, name, overload = operation.target.split(".")
    packet = getattr(torch.ops.aten, name, None)
    function = getattr(packet, overload, None) if packet is not None else None
    known = {argument.name for argument in function._schema.arguments} if function is not None else set()
    if function is None or not {name for name, _ in operation.inputs} <= known:
        detail = f"torch {torch.__version__} has no operator {operation.target} with these arguments."
        raise ModelError("operator_not_supported", detail, hint=RE_EXPORT)
    return Step(operation, function, function._schema, dict(operation.inputs))


def run(
    step: Step, values: dict[str, Any], *, device: torch.device, arguments: Mapping[str, Any] | None = None
) -> None:
    """Compute one step from `values` and put its results there; `arguments` may replace those of the file."""
    given = {name: _value(value, values, device) for name, value in (arguments or step.arguments).items()}
    result = step.function(*given.values()) if step.schema is None else step.function(**given)
    outputs = step.operation.outputs
    if len(outputs) == 1 and not step.operation.is_list:
        values[outputs[0]] = result
    else:
        values.update(zip(outputs, result, strict=False))


def _value(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    match value:
        case Ref(name):
            return values[name]
        case list():
            return [_value(item, values, device) for item in value]
        case Member("dtype", number):
            return DTYPES[int(number)]
        case Member("memory_format", number):
            return MEMORY_FORMATS[int(number)]
        case Member("layout"):
            return torch.strided
        case Member("device"):
            # The one of the machine it was exported on.
            return device
    return value


def last_uses(steps: list[Step], kept: set[str]) -> list[list[str]]:
    """For each step the values nothing after it reads, so that a run needs no more memory than the model itself."""
    seen = set(kept)
    dying: list[list[str]] = []
    for step in reversed(steps):
        ending = [name for name in {*names_in(step.arguments.values()), *step.operation.outputs} if name not in seen]
        seen.update(ending)
        dying.append(ending)
    return dying[::-1]


def names_in(value: Any) -> list[str]:
    """Names of the graph's values in an argument, nested lists included."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, str | int | float | Member) or value is None:
        return []
    return [name for item in value for name in names_in(item)]

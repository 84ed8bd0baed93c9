"""Is the written file the repaired model? Answers and tensors of the re-read file, compared with the eager model's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.errors import EngineError
from archrepair_core.ingest.outputs import largest_difference, largest_relative_difference
from archrepair_core.ingest.tensors import same_bits

OUR_DEFECT = "nothing you sent is wrong; report this with the job's id"
# What a conversion raises on a model it does not take. Libraries with roots of their own add to it.
CONVERSION_ERRORS: tuple[type[Exception], ...] = (
    torch.jit.frontend.FrontendError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    LookupError,
    OSError,
)

# Largest difference allowed, relative to the largest magnitude of the output: torch's own kernels, or another
# runtime's, which may sum in another order.
_SAME_KERNELS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_OTHER_KERNELS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Agreement:
    """How far the re-read file's answers are from the eager model's, over batches of these sizes."""

    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    max_relative_diff: float
    tolerance: float


@dataclass(frozen=True)
class TensorChanges:
    """Names of the file's tensors against the original's; `unchanged` are the original's bit for bit."""

    unchanged: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def check_answers(
    reread: Callable[[Tensor], Any], expected: Callable[[Tensor], Any], batches: Sequence[Tensor], *, same_kernels: bool
) -> Agreement:
    """Compare answers batch by batch: structure, dtype, shape and values. Raises EngineError `export_differs`."""
    allowed = (_SAME_KERNELS if same_kernels else _OTHER_KERNELS).get(batches[0].dtype, 1e-4)
    absolute, relative = 0.0, 0.0
    for batch in batches:
        found, wanted = seeded(reread, batch), seeded(expected, batch)
        if structure_of(found) != structure_of(wanted):
            raise _differs(f"gives {structure_of(found)} where the repaired model gives {structure_of(wanted)}")
        absolute = max(absolute, largest_difference(found, wanted))
        relative = max(relative, largest_relative_difference(found, wanted))
    if relative > allowed:
        raise _differs(f"answers {relative:.3g} (relative) beside the repaired model, {allowed:g} is allowed")
    return Agreement(tuple(len(batch) for batch in batches), absolute, relative, allowed)


def seeded(run: Callable[[Tensor], Any], batch: Tensor) -> Any:
    """Run on a copy, for models that normalise in place; from one seed, for models that draw numbers in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return run(batch.clone())


def structure_of(value: Any) -> Any:
    """How an answer is nested, with dtype and shape of each tensor; plain data to compare and to show."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return {key: structure_of(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("NamedTuple", dict(zip(value._fields, map(structure_of, value), strict=True)))
    if isinstance(value, tuple | list):
        return type(value)(structure_of(item) for item in value)
    return type(value).__name__


def compare_tensors(written: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> TensorChanges:
    """Which of the file's tensors are the original's, by name."""
    shared = [name for name in written if name in original]
    unchanged = {name for name in shared if same_bits(written[name], original[name])}
    return TensorChanges(
        unchanged=tuple(name for name in shared if name in unchanged),
        changed=tuple(name for name in shared if name not in unchanged),
        added=tuple(name for name in written if name not in original),
        removed=tuple(name for name in original if name not in written),
    )


def device_of(module: nn.Module) -> torch.device:
    """Where the module's tensors are; the CPU if it has none."""
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


def reason_of(error: Exception) -> str:
    """An error's message, short enough for a report."""
    return (str(error).strip() or type(error).__name__)[:2000]


def export_failed(detail: str) -> EngineError:
    """The model could not be written in a format."""
    return EngineError("export_failed", detail, hint=OUR_DEFECT)


def signature_changed(expected: object, found: object) -> EngineError:
    """The written model takes other arguments than the original."""
    return EngineError(
        "signature_changed",
        f"the saved model does not fit where the original did: expected {expected}, found {found}",
        hint=OUR_DEFECT,
    )


def _differs(how: str) -> EngineError:
    return EngineError("export_differs", f"the saved model {how}", hint=OUR_DEFECT)

"""Write a repaired model as a TorchScript archive, and prove that the file is what was repaired."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.errors import EngineError
from archrepair_core.ingest.outputs import largest_relative_difference, tensors_in
from archrepair_core.ingest.tensors import same_bits
from archrepair_core.modes import eval_mode

_TOLERANCE = 1e-5
# What the TorchScript compiler raises on source it does not take.
_COMPILE_ERRORS = (
    torch.jit.frontend.FrontendError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
    OSError,
    LookupError,
)


@dataclass(frozen=True)
class ExportCheck:
    """What was written and how it compares; `unchanged` tensors are the original's bit for bit.

    `method` is `script`, or `trace` with the compiler's reason in `script_error`: a trace has lost train mode.
    """

    method: str
    script_error: str
    max_relative_diff: float
    unchanged: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def export_torchscript(module: nn.Module, path: Path, *, inputs: Tensor, original: nn.Module) -> ExportCheck:
    """Save `module` in eval mode, reload it as a customer would, and check its answers and signature.

    `path` appears only when all holds. Raises EngineError: `export_failed`, `export_differs`, `signature_changed`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with eval_mode(module), eval_mode(original), torch.no_grad():
            method, script_error = _write(module, partial, inputs)
            reloaded = _quietly(torch.jit.load, str(partial), map_location=_device(module))
            difference = _checked_difference(reloaded, module, inputs)
            _check_signature(reloaded, original, inputs)
        comparison = _compare_tensors(reloaded.state_dict(), original.state_dict())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return ExportCheck(method=method, script_error=script_error, max_relative_diff=difference, **comparison)


def _write(module: nn.Module, partial: Path, inputs: Tensor) -> tuple[str, str]:
    compiled, method, script_error = _compiled(module, inputs)
    with partial.open("wb") as stream:
        _quietly(torch.jit.save, compiled, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return method, script_error


def _compiled(module: nn.Module, inputs: Tensor) -> tuple[torch.jit.ScriptModule, str, str]:
    try:
        return _quietly(torch.jit.script, module), "script", ""
    except _COMPILE_ERRORS as error:
        script_error = str(error).strip()[:2000]
    try:
        # Our own comparison follows, on two batch sizes: the tracer's would repeat it on one.
        traced = _quietly(torch.jit.trace, module, inputs.to(_device(module)), check_trace=False, strict=False)
    except _COMPILE_ERRORS as error:
        raise EngineError(
            "export_failed",
            f"the repaired model compiles neither by scripting ({script_error}) nor by tracing ({error})",
            hint="nothing you sent is wrong; report this with the job's id",
        ) from error
    return traced, "trace", script_error


def _quietly(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Call a torch.jit function without its announcement that TorchScript will end one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return function(*arguments, **keywords)


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


def _checked_difference(reloaded: torch.jit.ScriptModule, module: nn.Module, inputs: Tensor) -> float:
    moved = inputs.to(_device(module))
    differences = [
        largest_relative_difference(_seeded(reloaded, batch), _seeded(module, batch)) for batch in (moved[:1], moved)
    ]
    if max(differences) > _TOLERANCE:
        raise EngineError(
            "export_differs",
            f"the saved model's answers differ from the repaired model's by {max(differences):.3g} (relative)",
            hint="nothing you sent is wrong; report this with the job's id",
        )
    return max(differences)


def _seeded(module: nn.Module, batch: Tensor) -> Any:
    # Some models draw random numbers even in eval mode; from the same seed they draw the same.
    torch.manual_seed(0)
    return module(batch)


def _check_signature(reloaded: torch.jit.ScriptModule, original: nn.Module, inputs: Tensor) -> None:
    expected, found = _signature(original), _signature(reloaded)
    if expected != found:
        raise _signature_changed(expected, found)
    shapes = _shapes(original(inputs[:1].to(_device(original)))), _shapes(reloaded(inputs[:1].to(_device(reloaded))))
    if shapes[0] != shapes[1]:
        raise _signature_changed(*shapes)


def _signature(module: Any) -> dict[str, str]:
    arguments = module._c._get_method("forward").schema.arguments[1:]
    return {argument.name: argument.type.annotation_str for argument in arguments}


def _shapes(answer: Any) -> dict[str, tuple[str, list[int]]]:
    return {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors_in(answer).items()}


def _signature_changed(expected: object, found: object) -> EngineError:
    return EngineError(
        "signature_changed",
        f"the saved model does not fit where the original did: expected {expected}, found {found}",
        hint="nothing you sent is wrong; report this with the job's id",
    )


def _compare_tensors(exported: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    shared = [name for name in exported if name in original]
    unchanged = {name for name in shared if same_bits(exported[name], original[name])}
    return {
        "unchanged": tuple(name for name in shared if name in unchanged),
        "changed": tuple(name for name in shared if name not in unchanged),
        "added": tuple(name for name in exported if name not in original),
        "removed": tuple(name for name in original if name not in exported),
    }

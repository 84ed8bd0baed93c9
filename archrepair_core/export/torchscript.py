"""TorchScript out: scripted where the original was, traced where it was traced, and re-read by `torch.jit.load`."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archrepair_core.errors import EngineError
from archrepair_core.export.parity import (
    CONVERSION_ERRORS,
    check_answers,
    compare_tensors,
    device_of,
    export_failed,
    reason_of,
    signature_changed,
)
from archrepair_core.export.program import argument_names
from archrepair_core.export.subject import Subject, Written
from archrepair_core.ingest.graphs import inlined, method_graph, nodes_of


def write_torchscript(subject: Subject, path: Path) -> Written:
    """Save and re-read by the first of scripting and tracing that gives the same model; the original's way goes first.

    Raises EngineError: `export_failed`, `export_differs`, `signature_changed`.
    """
    straight = _is_straight(subject.original)
    first, second = ("trace", "script") if straight else ("script", "trace")
    try:
        return _write(subject, path, first)
    except EngineError as error:
        reason = error.detail
    # Scripted instead of traced, nothing is lost.
    note = "" if straight else f"written by tracing, so train mode is lost, because {reason}"
    try:
        return _write(subject, path, second, note)
    except EngineError as error:
        raise EngineError(
            error.code.partition(".")[2], f"{error.detail}; before that, {reason}", hint=error.hint
        ) from None


def _write(subject: Subject, path: Path, method: str, note: str = "") -> Written:
    try:
        compiled = _COMPILERS[method](subject)
        # By name: into a stream it would be written by way of a copy in memory.
        quietly(torch.jit.save, compiled, str(path))
    except CONVERSION_ERRORS as error:
        raise export_failed(f"the repaired model does not compile by {method}: {reason_of(error)}") from error
    del compiled
    reread = quietly(torch.jit.load, str(path), map_location=device_of(subject.module))
    _check_signature(reread, subject.original)
    agreement = check_answers(reread, subject.module, subject.batches, same_kernels=True)
    return Written(method, agreement, compare_tensors(reread.state_dict(), subject.original.state_dict()), note)


def _script(subject: Subject) -> Any:
    return quietly(torch.jit.script, subject.module)


def _trace(subject: Subject) -> Any:
    # With gradients: without, attention takes a fused operator that has none, and the file could not be trained.
    with torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", torch.jit.TracerWarning)
        # Our own comparison follows, on two batch sizes: the tracer's would repeat it on one.
        traced = torch.jit.trace(subject.module, subject.batches[-1].clone(), check_trace=False, strict=False)
    frozen = [str(warning.message) for warning in caught if issubclass(warning.category, torch.jit.TracerWarning)]
    if frozen and _is_straight(subject.original):
        raise RuntimeError(f"its code decides on sizes or values, which a trace would freeze: {frozen[0]}")
    return traced


_COMPILERS: dict[str, Callable[[Subject], Any]] = {"script": _script, "trace": _trace}


def _is_straight(original: nn.Module) -> bool:
    """Whether the file is an archive without control flow that never looks at its train flag.

    A trace of such a model loses nothing, and scripting it would add the branches of `torch.nn` to every layer.
    """
    if not isinstance(original, torch.jit.ScriptModule):
        return False
    return not any(
        node.kind() in ("prim::If", "prim::Loop") or (node.kind() == "prim::GetAttr" and node.s("name") == "training")
        for node in nodes_of(inlined(method_graph(original, "forward")))
    )


def quietly(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Call a torch.jit function without its announcement that TorchScript will end one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return function(*arguments, **keywords)


def _check_signature(reread: torch.jit.ScriptModule, original: nn.Module) -> None:
    # Only an archive knows the types of its arguments.
    described = _arguments if isinstance(original, torch.jit.ScriptModule) else argument_names
    expected, found = described(original), described(reread)
    if expected != found:
        raise signature_changed(expected, found)


def _arguments(module: Any) -> dict[str, str]:
    arguments = module._c._get_method("forward").schema.arguments[1:]
    return {argument.name: argument.type.annotation_str for argument in arguments}

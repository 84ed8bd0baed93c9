"""The model as one graph of operators by `torch.export`: what `.pt2` files hold and ONNX files are made from."""

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from archrepair_core.export.parity import CONVERSION_ERRORS, export_failed, reason_of

_CAPTURE_BATCH = 2
_NO_TRAINING = "the graph is the one of eval mode and cannot be switched to training"
_TALKATIVE_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Capture:
    """A program and what it lost; with `dynamic_batch` it takes batches of any size, else of size 1 alone."""

    program: ExportedProgram
    input_names: tuple[str, ...]
    dynamic_batch: bool
    note: str


def capture_program(module: nn.Module, batch: Tensor, original: nn.Module) -> Capture:
    """Trace `module`, in eval mode, for any batch size; where its code forbids that, for batches of one.

    The inputs only lend their shape: none of them is kept in the program. Raises EngineError `export_failed`.
    """
    names = argument_names(original)
    notes = [_NO_TRAINING]
    if len(names) > 1:
        notes.append(f"arguments with defaults are fixed to them: {', '.join(names[1:])}")
    with _plain_tuples(module) as found:
        try:
            program = _captured(module, torch.zeros_like(batch[:_CAPTURE_BATCH]), {0: Dim("batch", min=1)})
            dynamic = True
        except CONVERSION_ERRORS as error:
            notes.append(f"takes batches of 1 only, because another size does not export: {reason_of(error)[:300]}")
            program, dynamic = _static(module, batch), False
    notes += found
    _forget_origin_(program)
    return Capture(program, names[:1], dynamic, "; ".join(dict.fromkeys(notes)))


def _static(module: nn.Module, batch: Tensor) -> ExportedProgram:
    try:
        return _captured(module, torch.zeros_like(batch[:1]), None)
    except CONVERSION_ERRORS as error:
        raise export_failed(f"torch.export does not take the repaired model: {reason_of(error)}") from error


def _captured(module: nn.Module, batch: Tensor, dimensions: dict[int, Any] | None) -> ExportedProgram:
    from torch._export.verifier import SpecViolationError

    with quiet_tools():
        try:
            # Positional, so that the name of the model's argument does not matter.
            return torch.export.export(module, (batch,), dynamic_shapes=dimensions and (dimensions,), strict=False)
        except SpecViolationError as error:
            raise RuntimeError(str(error)) from error


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """What `forward` calls its inputs, in an archive and in a module alike."""
    if isinstance(module, torch.jit.ScriptModule):
        return tuple(argument.name for argument in module._c._get_method("forward").schema.arguments[1:])
    return tuple(inspect.signature(module.forward).parameters)


@contextmanager
def _plain_tuples(module: nn.Module) -> Iterator[list[str]]:
    """Have `module` answer with tuples for its NamedTuples; yields the notes about those it met.

    A file with a NamedTuple loads only where the class has been registered, which no customer's process has done.
    """
    notes: list[str] = []
    hook = module.register_forward_hook(lambda _module, _arguments, answer: plain(answer, notes))
    try:
        yield notes
    finally:
        hook.remove()


def plain(answer: Any, notes: list[str] | None = None) -> Any:
    """The answer with tuples for its NamedTuples; what they were is added to `notes`."""
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        if notes is not None:
            notes.append(f"a NamedTuple became a tuple in the order {', '.join(answer._fields)}")
        return tuple(plain(item, notes) for item in answer)
    if isinstance(answer, tuple | list):
        return type(answer)(plain(item, notes) for item in answer)
    if isinstance(answer, dict):
        return {key: plain(item, notes) for key, item in answer.items()}
    return answer


def _forget_origin_(program: ExportedProgram) -> None:
    """Drop what the program remembers of this machine and of the inputs it was traced with."""
    program._example_inputs = None
    for graph_module in program.graph_module.modules():
        if isinstance(graph_module, torch.fx.GraphModule):
            for node in graph_module.graph.nodes:
                node.meta.pop("stack_trace", None)
                stack = node.meta.get("nn_module_stack", {})
                node.meta["nn_module_stack"] = {key: (path, _own_name(kind)) for key, (path, kind) in stack.items()}


def _own_name(kind: Any) -> str:
    """The customer's name of a class, where `kind` is the class we generated for it or that class's name."""
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    module_name, _, class_name = name.rpartition(".")
    made = getattr(sys.modules.get(module_name), class_name, None)
    return str(getattr(made, "_jit_override_qualname", name)).removeprefix("__torch__.")


@contextmanager
def quiet_tools() -> Iterator[None]:
    """Keep the announcements of torch's exporters out of the log, and out of the tests, where warnings are errors."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE_LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(torch|copyreg|onnx|onnxscript)(\.|$)")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

"""ONNX out: converted from the torch.export program, checked by `onnx.checker`, re-read by ONNX Runtime.

onnx, onnxruntime and onnxscript are imported on first use: an engine that writes no ONNX never pays for them.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from archrepair_core.export.parity import (
    CONVERSION_ERRORS,
    TensorChanges,
    check_answers,
    compare_tensors,
    export_failed,
    reason_of,
)
from archrepair_core.export.program import quiet_tools
from archrepair_core.export.subject import Subject, Written
from archrepair_core.ingest.outputs import tensors_in

# A protobuf message ends at 2 GiB; what is not weights needs far less than this reserve.
MAX_WEIGHT_BYTES = (2 << 30) - (64 << 20)
_WARNINGS_OF_RUNTIME = 3  # ONNX Runtime's severity: errors and worse


def write_onnx(subject: Subject, path: Path) -> Written:
    """Convert, check and re-read. Raises EngineError: `export_failed`, `export_differs`."""
    _refuse_large(subject.module.state_dict())
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state

    capture = subject.capture
    names = output_names(subject.module(subject.batches[0].clone()))
    runtime_errors = tuple(value for value in vars(runtime_state).values() if _is_error(value))
    checker_errors = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        with quiet_tools():
            _convert(capture.program, path, list(capture.input_names), names)
            onnx.checker.check_model(str(path), full_check=True)
            changes = _changes(onnx, path, subject.original.state_dict())
            session = _session(onnxruntime, path)
            run = _runner(session, subject.batches[0].dtype)
            batches = subject.batches if capture.dynamic_batch else subject.batches[:1]
            agreement = check_answers(run, _flat(subject.module, names), batches, same_kernels=False)
    except (*CONVERSION_ERRORS, *checker_errors, *runtime_errors) as error:
        raise export_failed(f"the repaired model does not become ONNX: {reason_of(error)}") from error
    return Written("onnx", agreement, changes, _note(capture.note, names))


def _refuse_large(state: Mapping[str, Tensor]) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > MAX_WEIGHT_BYTES:
        raise export_failed(f"its weights take {size} bytes and one ONNX file holds {MAX_WEIGHT_BYTES}")


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _convert(program: ExportedProgram, path: Path, input_names: list[str], names: list[str]) -> None:
    _broadcast_copies_(program)
    made = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=input_names, output_names=names, optimize=False
    )
    assert made is not None
    _fold_constants_(made.model)
    _name_batch_(made.model)
    _forget_origin_(made.model)
    made.save(path, external_data=False)


def _fold_constants_(model: Any) -> None:
    """Compute what is constant. Batch-norms stay unfused: runtimes do it on loading, and the weights stay as sent."""
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def _broadcast_copies_(program: ExportedProgram) -> None:
    """Spell out that `copy_` broadcasts its source: the converter takes the source for the result, shape and all."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in (torch.ops.aten.copy_.default, torch.ops.aten.copy.default):
            target, source = node.args[0], node.args[1]
            if target.meta["val"].shape != source.meta["val"].shape:
                with graph.inserting_before(node):
                    wide = graph.call_function(torch.ops.aten.expand_as.default, (source, target))
                wide.meta["val"] = source.meta["val"].expand_as(target.meta["val"])
                node.update_arg(1, wide)
    program.graph_module.recompile()


def _name_batch_(model: Any) -> None:
    """Call the free dimension `batch`; the exporter calls it `s77`."""
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], onnx_ir.SymbolicDim):
            value.shape[0] = "batch"


def _forget_origin_(model: Any) -> None:
    """Drop the traces through our source files that the converter leaves at every node."""
    import onnx_ir

    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _session(onnxruntime: Any, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _WARNINGS_OF_RUNTIME
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _runner(session: Any, dtype: torch.dtype) -> Callable[[Tensor], dict[str, Tensor]]:
    name = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    if dtype == torch.bfloat16:
        raise TypeError("ONNX Runtime takes no bfloat16 inputs from numpy")

    def run(batch: Tensor) -> dict[str, Tensor]:
        answers = session.run(names, {name: batch.cpu().numpy()})
        return {name: torch.from_numpy(np.asarray(answer)) for name, answer in zip(names, answers, strict=True)}

    return run


def _flat(module: Callable[[Tensor], Any], names: list[str]) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda batch: dict(zip(names, tensors_in(module(batch)).values(), strict=True))


def output_names(answer: Any) -> list[str]:
    """A name for every tensor of an answer, from where it stands: `logits`, `output_0`; ONNX has no nesting."""
    names = [_name(path, answer) for path in tensors_in(answer)]
    return names if len(set(names)) == len(names) else [f"output_{index}" for index in range(len(names))]


def _name(path: str, answer: Any) -> str:
    steps = re.findall(r"\[([^\]]*)\]", path)
    if steps and hasattr(answer, "_fields"):
        steps[0] = answer._fields[int(steps[0])]
    words = [re.sub(r"\W", "_", step.strip("'\"")) for step in steps]
    return "_".join(words if words and not words[0].isdigit() else ["output", *words])


def _changes(onnx: Any, path: Path, original: Mapping[str, Tensor]) -> TensorChanges:
    """The file's initializers against the original's tensors; types numpy does not have are left out."""
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(str(path)).graph.initializer}
    with warnings.catch_warnings():
        # They are views of the file's bytes, and nobody writes into them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiub"}
        return compare_tensors(tensors, original)


def _note(note: str, names: list[str]) -> str:
    flat = f"the outputs are flat: {', '.join(names)}" if names != ["output"] else ""
    return "; ".join(part for part in (note, flat) if part)

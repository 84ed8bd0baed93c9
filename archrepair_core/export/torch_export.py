""".pt2 out: written by `torch.export.save`, re-read by `torch.export.load`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archrepair_core.export.parity import (
    CONVERSION_ERRORS,
    check_answers,
    compare_tensors,
    export_failed,
    reason_of,
    signature_changed,
)
from archrepair_core.export.program import plain, quiet_tools
from archrepair_core.export.subject import Subject, Written


def write_torch_export(subject: Subject, path: Path) -> Written:
    """Save the program and re-read it. Raises EngineError: `export_failed`, `export_differs`, `signature_changed`."""
    capture = subject.capture
    try:
        with quiet_tools():
            torch.export.save(capture.program, path)
            program = torch.export.load(path)
            reread = program.module()
    except CONVERSION_ERRORS as error:
        raise export_failed(f"torch.export cannot save the repaired model: {reason_of(error)}") from error
    signature = program.module_call_graph[0].signature
    names = tuple(signature.forward_arg_names or ()) if signature else ()
    if names != capture.input_names:
        raise signature_changed(capture.input_names, names)

    def answer(batch: Tensor) -> Any:
        return plain(subject.module(batch))

    batches = subject.batches if capture.dynamic_batch else subject.batches[:1]
    agreement = check_answers(reread, answer, batches, same_kernels=True)
    changes = compare_tensors(program.state_dict, subject.original.state_dict())
    return Written("export", agreement, changes, capture.note)

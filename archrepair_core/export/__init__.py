"""Write a repaired model in the formats asked for, and prove that each file is what was repaired."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from archrepair_core.errors import EngineError
from archrepair_core.export.onnx import write_onnx
from archrepair_core.export.parity import device_of, seeded, signature_changed, structure_of
from archrepair_core.export.subject import Export, Subject, Written, two_batches
from archrepair_core.export.torch_export import write_torch_export
from archrepair_core.export.torchscript import write_torchscript
from archrepair_core.export.weights import write_weights
from archrepair_core.modes import eval_mode
from archrepair_core.spec import FILE_SUFFIXES, OutputFormat

WRITERS: Mapping[OutputFormat, Callable[[Subject, Path], Written]] = {
    "torchscript": write_torchscript,
    "torch_export": write_torch_export,
    "onnx": write_onnx,
    "safetensors": write_weights,
}


def export_model(
    subject: Subject, directory: Path, stem: str, *, formats: Sequence[OutputFormat], required: OutputFormat
) -> list[Export]:
    """Write `stem` in every format. One that fails says why in its note, unless it is `required` or the last hope.

    Raises EngineError: `export_failed`, `export_differs`, `signature_changed`.
    """
    _check_answer_fits(subject)
    exports: list[Export] = []
    for format_ in formats:
        path = directory / f"{stem}{FILE_SUFFIXES[format_]}"
        try:
            exports.append(_export(subject, path, format_))
        except EngineError as error:
            if format_ == required or (format_ == formats[-1] and not any(export.file for export in exports)):
                raise
            exports.append(Export(format_, None, f"not written: {error.detail}"))
    return exports


def export_torchscript(module: nn.Module, path: Path, *, inputs: Tensor, original: nn.Module) -> Export:
    """Write one TorchScript file. Raises EngineError: `export_failed`, `export_differs`, `signature_changed`."""
    subject = Subject(module, original, two_batches(inputs, module))
    _check_answer_fits(subject)
    return _export(subject, path, "torchscript")


def _check_answer_fits(subject: Subject) -> None:
    """The repaired model must answer in the original's structure, dtypes and shapes."""
    one = subject.batches[0]
    with eval_mode(subject.module), eval_mode(subject.original):
        expected = structure_of(seeded(subject.original, one.to(device_of(subject.original))))
        found = structure_of(seeded(subject.module, one))
    if expected != found:
        raise signature_changed(expected, found)


def _export(subject: Subject, path: Path, format_: OutputFormat) -> Export:
    """`path` appears only when the file has been read again and agrees."""
    # In a directory of its own: torch takes the names inside of an archive from that of the file.
    partial = path.parent / ".partial" / path.name
    partial.parent.mkdir()
    try:
        with eval_mode(subject.module), torch.no_grad():
            written = WRITERS[format_](subject, partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial.parent)
    return Export(format_, path.name, written.note, written)

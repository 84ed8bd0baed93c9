"""Rebuild a .pt2 file as ordinary, editable nn.Modules: START HERE for reading torch.export programs.

The checked graph becomes the tree of calls that was recorded (`torch_export_tree.py`); each call becomes a `torch.nn`
layer where its one operator proves it, else a class whose forward is written line by line (`torch_export_emission.py`).
torch's own loader is never called: it would unpickle and evaluate what the file says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.inspect import ArchiveSummary
from archrepair_core.ingest.outputs import largest_relative_difference
from archrepair_core.ingest.records import ArchiveLimits, RecordReader
from archrepair_core.ingest.tensors import TensorCopies
from archrepair_core.ingest.torch_export_batch import batch_of, find_batch, fixed_batch_size
from archrepair_core.ingest.torch_export_gate import check_export
from archrepair_core.ingest.torch_export_graph import DTYPES, resolve
from archrepair_core.ingest.torch_export_modules import rebuild_modules
from archrepair_core.ingest.torch_export_program import Program, unsafe_program
from archrepair_core.ingest.torch_export_reference import ExportedModel, build, make_reference
from archrepair_core.ingest.torch_export_root import argument_trees, user_inputs
from archrepair_core.ingest.torch_export_tensors import load_tensors

_TOLERANCE = 1e-5
_CONTRADICTIONS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SyntaxError, StopIteration)
_PROBE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, LookupError)


@dataclass(frozen=True)
class LoadedExport:
    """A .pt2 file twice: `reference` runs its graph as it stands, `model` is editable; they share no tensor."""

    reference: ExportedModel
    model: nn.Module
    summary: ArchiveSummary


def ingest_export(path: Path, *, limits: ArchiveLimits | None = None) -> LoadedExport:
    """The model in a .pt2 file, in eval mode and for any batch size.

    Raises ModelError: what the gate raises, `operator_not_supported`, `fixed_batch_size`.
    """
    limits = limits or ArchiveLimits()
    with RecordReader(path, limits) as reader:
        checked = check_export(reader, limits)
        tensors = load_tensors(reader, {**checked.weights, **checked.constants})
    program = checked.program
    _check_names(program, tensors)
    argument_trees(program)
    batch, _ = batch_of(program)
    fixed = 0 if batch.symbol else batch.size
    try:
        steps = resolve(program.operations)
        shaped = find_batch(program, steps, tensors)
        reference = make_reference(program, steps, tensors, fixed_batch=fixed)
        model = rebuild_modules(program, steps, shaped, _copied(tensors))
    except ModelError:
        raise
    except _CONTRADICTIONS as error:
        # Crafted files: every record was well formed, but they do not make one program together.
        raise unsafe_program(f"The program contradicts itself: {type(error).__name__} {str(error)[:200]}.") from error
    if fixed:
        _check_any_batch(reference, model, program, size=fixed)
    return LoadedExport(reference, model, checked.summary)


def _check_names(program: Program, tensors: Mapping[str, Tensor]) -> None:
    plain = nn.Module()
    for name in (*program.modules, *tensors):
        odd = [part for part in name.split(".") if hasattr(plain, part) or part.startswith("__")]
        if odd and name:
            raise unsafe_program(f"The program names something {name!r}: every module already has {odd[0]!r}.")


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in memory of their own, tied ones still tied."""
    copies = TensorCopies()
    return {
        name: copies.parameter(tensor) if isinstance(tensor, nn.Parameter) else copies.tensor(tensor)
        for name, tensor in tensors.items()
    }


def _check_any_batch(reference: ExportedModel, model: nn.Module, program: Program, *, size: int) -> None:
    """A static program answers for one batch size: the model must answer for another as it does piece by piece."""
    generator = torch.Generator().manual_seed(0)
    _, batched = batch_of(program)
    leaves = iter(
        _random(program, item.name, size + 1 if item.name in batched else 0, generator)
        if item.kind == "tensor"
        else item.value
        for item in user_inputs(program)
    )
    inputs = [build(leaves, tree) for tree in argument_trees(program)]
    with torch.no_grad():
        try:
            expected, found = reference(*inputs), model(*inputs)
        except _PROBE_ERRORS as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise fixed_batch_size(size, lines[0][:200]) from error
    difference = largest_relative_difference(found, expected)
    if difference > _TOLERANCE:
        raise fixed_batch_size(size, f"on a batch of {size + 1} its answers differ by {difference:.2g} (relative)")


def _random(program: Program, name: str, rows: int, generator: torch.Generator) -> Tensor:
    shape = [dimension.size for dimension in program.input_shapes[name]]
    shape[:1] = [rows] if rows else shape[:1]
    dtype = DTYPES[program.input_dtypes[name]]
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)

"""The safety gate for .pt2 files of `torch.export.save`: decided by reading alone, like `inspect.py` for TorchScript.

`torch.export.load` has no safe mode: it unpickles the example inputs, evaluates symbolic expressions and loads compiled
code. None of that is needed to rebuild a model, so nothing of torch's loader is used; see `torch_export.py`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import ATEN_OPERATORS, words
from archrepair_core.ingest.inert import tensor_geometry
from archrepair_core.ingest.inspect import ArchiveSummary
from archrepair_core.ingest.records import ArchiveLimits, Record, RecordReader, unsafe_archive
from archrepair_core.ingest.torch_export_program import (
    RE_EXPORT,
    Program,
    Ref,
    read_json,
    read_program,
    unsafe_program,
)
from archrepair_core.ingest.versions import check_export_version

# What older torch wrote instead of the records below: all of it pickles.
_LEGACY = {"serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"}
_MODEL = re.compile(r"models/([A-Za-z0-9_]{1,64})\.json")
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]{1,9}")
_CONFIG = re.compile(r"data/(weights/[A-Za-z0-9_]{1,64}_weights|constants/[A-Za-z0-9_]{1,64}_constants)_config\.json")
# Never opened. The example inputs are a pickle that torch.export.load would run.
_IGNORED = re.compile(
    r"data/sample_inputs/[A-Za-z0-9_]{1,64}\.pt|extra/.+|archive_version|version|\.data/(version|serialization_id)"
    r"|\.format_version|\.storage_alignment"
)
_COMPILED = re.compile(r"data/aotinductor/.*|data/executorch/.*|.*\.(so|dll|dylib|o|cubin|ptx|cpp|pte|wrapper)")
_OPAQUE = re.compile(r"data/constants/(custom_obj|opaque_obj)_.*")
_NEW_LEGACY = re.compile(r"data/(weights|constants)/[A-Za-z0-9_]{1,64}\.pt")

# The number the format gives a dtype, and its size in bytes.
DTYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 10: 8, 11: 16, 12: 1, 13: 2}
_STRIDED = 7

# Bookkeeping that torch.export adds, and decomposed forms of listed operators. All of them map tensors to tensors.
_EXPORT_OPERATORS = words("""
    _assert_async _assert_scalar _assert_tensor_metadata _log_softmax _softmax _to_copy _unsafe_index _unsafe_view
    addmm alias detach_copy lift_fresh lift_fresh_copy sym_constrain_range sym_constrain_range_for_size sym_numel
    sym_size
    """)
# Arithmetic on sizes: Python's own functions, named as the format names them.
_SIZE_ARITHMETIC = words("add sub mul floordiv mod neg pos truediv pow eq ne le ge lt gt and_ or_")
SIZE_OPERATORS = frozenset(f"_operator.{name}" for name in _SIZE_ARITHMETIC) | {
    "math.trunc",
    *(f"torch.sym_{name}" for name in ("float", "int", "max", "min", "not")),
}
_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
_MAX_LISTED = 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: a strided view inside the bytes of one record. `dtype` is the format's number."""

    record: str
    dtype: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    is_parameter: bool
    requires_grad: bool

    @property
    def num_elements(self) -> int:
        """Elements of the view."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class CheckedExport:
    """A program and where its tensors lie: `weights` are the state_dict, `constants` all other tensors, by name."""

    summary: ArchiveSummary
    program: Program
    weights: Mapping[str, StoredTensor]
    constants: Mapping[str, StoredTensor]


def is_export(records: Mapping[str, Record]) -> bool:
    """Whether an archive's records are those of torch.export rather than TorchScript."""
    named = "archive_format" in records or bool(_LEGACY & records.keys())
    return named or any(_MODEL.fullmatch(name) for name in records)


def check_export(reader: RecordReader, limits: ArchiveLimits) -> CheckedExport:
    """All checks but the checksums of tensor records, which belong to whoever reads those bytes. Raises ModelError."""
    records = reader.records
    _refuse_legacy(records)
    _check_record_names(records)
    model = _only_model(records)
    _check_byteorder(reader)
    name = f"models/{model}.json"
    data = read_json(reader.read(records[name], max_bytes=limits.sources_bytes), name)
    version = check_export_version(data)
    program = read_program(data, name, _check_operators)
    weights = _read_tensors(reader, f"data/weights/{model}_weights_config.json", limits)
    constants = _read_tensors(reader, f"data/constants/{model}_constants_config.json", limits)
    stored = {**weights, **constants}
    _check_flow(program, stored)
    parameters = {(t.record, t.offset, t.shape, t.stride): t.num_elements for t in weights.values() if t.is_parameter}
    _check_trainable(sum(parameters.values()), constants)
    used = {tensor.record for tensor in stored.values()}
    summary = ArchiveSummary(
        format_version=version[0],
        root_class=next((op.scopes[0].class_name for op in program.operations if op.scopes), ""),
        modules=program.modules,
        num_records=len(records),
        num_parameters=sum(parameters.values()),
        num_storages=len(used),
        storage_bytes=sum(records[name].num_bytes for name in used),
        written_by=f"torch {program.written_by}",
    )
    return CheckedExport(summary, program, weights, constants)


def inspect_export(path: Path, *, limits: ArchiveLimits | None = None) -> ArchiveSummary:
    """What a .pt2 file holds, if it is a safe, trainable program; every checksum of its tensors verified."""
    limits = limits or ArchiveLimits()
    with RecordReader(path, limits) as reader:
        checked = check_export(reader, limits)
        for name in {tensor.record for tensor in (*checked.weights.values(), *checked.constants.values())}:
            for _ in reader.chunks(reader.records[name]):
                pass
    return checked.summary


def _refuse_legacy(records: Mapping[str, Record]) -> None:
    legacy = [name for name in records if name in _LEGACY or _NEW_LEGACY.fullmatch(name)]
    if legacy:
        detail = f"The .pt2 file is of a layout older than torch 2.9: it keeps its weights in a pickle ({legacy[0]})."
        hint = "Export the model again with torch 2.9 or newer, and save it with torch.export.save."
        raise ModelError("format_not_supported", detail, hint=hint)


def _check_record_names(records: Mapping[str, Record]) -> None:
    for name, record in records.items():
        if _COMPILED.fullmatch(name):
            detail = f"Record {name!r} is compiled code, which cannot be checked, repaired or run here."
            raise ModelError("compiled_code", detail, hint=RE_EXPORT)
        if _OPAQUE.fullmatch(name):
            raise unsafe_program(f"Record {name!r} is a custom object: those are pickles, which can run code.")
        is_tensor = _TENSOR.fullmatch(name) is not None
        is_known = is_tensor or name in ("archive_format", "byteorder") or _CONFIG.fullmatch(name)
        if not (is_known or _MODEL.fullmatch(name) or _IGNORED.fullmatch(name)):
            raise unsafe_archive(f"Record {name!r} is none that torch.export.save writes.")
        if is_tensor and not record.is_stored:
            raise unsafe_archive(f"Tensor record {name!r} is compressed; torch.export.save stores tensors plainly.")


def _only_model(records: Mapping[str, Record]) -> str:
    models = [found.group(1) for name in records if (found := _MODEL.fullmatch(name))]
    if len(models) != 1:
        detail = f"The file holds {len(models)} programs {sorted(models)[:4]}; exactly one can be repaired."
        raise ModelError("format_not_supported", detail, hint="Save one program: torch.export.save(program, path).")
    return models[0]


def _check_byteorder(reader: RecordReader) -> None:
    order = reader.records.get("byteorder")
    if order is not None and reader.read(order, max_bytes=64) != b"little":
        raise ModelError("format_not_supported", "The file was written on a big-endian machine.", hint=RE_EXPORT)


def _check_operators(targets: list[tuple[str, str]]) -> None:
    """Every operator by allow-list, all that are not listed in one error."""
    refused = {target: where or "the model itself" for target, where in reversed(targets) if not _is_allowed(target)}
    if refused:
        listed = "; ".join(f"{target} in {where}" for target, where in list(refused.items())[:_MAX_LISTED])
        hint = "Replace these operations in the model's code. Control flow, no_grad blocks and custom operators inside "
        hint += "a program cannot be repaired; an operator of torch's own that is missing here can be asked for."
        raise ModelError("operator_not_allowed", f"{len(refused)} operators are not allowed: {listed}.", hint=hint)


def _is_allowed(target: str) -> bool:
    if target in SIZE_OPERATORS:
        return True
    found = _ATEN.fullmatch(target)
    # `out` overloads write where they are told to.
    return found is not None and found[1] in ATEN_OPERATORS | _EXPORT_OPERATORS and not found[2].endswith("out")


def _read_tensors(reader: RecordReader, config_name: str, limits: ArchiveLimits) -> dict[str, StoredTensor]:
    record = reader.records.get(config_name)
    if record is None:
        raise unsafe_archive(f"Record {config_name!r} is missing.")
    config = read_json(reader.read(record, max_bytes=limits.sources_bytes), config_name)
    folder = config_name.rpartition("/")[0]
    try:
        return {name: _stored(name, entry, folder, reader.records) for name, entry in config["config"].items()}
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unsafe_program(f"Record {config_name!r} is incomplete: {type(error).__name__} {error}.") from error


def _stored(name: str, entry: Any, folder: str, records: Mapping[str, Record]) -> StoredTensor:
    if entry["use_pickle"] is not False or entry["tensor_meta"] is None:
        raise unsafe_program(f"{name!r} is stored as a pickle, which can run code; only plain tensors are read.")
    meta = entry["tensor_meta"]
    stored = StoredTensor(
        record=f"{folder}/{entry['path_name']}",
        dtype=meta["dtype"],
        shape=tuple(size["as_int"] for size in meta["sizes"]),
        stride=tuple(size["as_int"] for size in meta["strides"]),
        offset=meta["storage_offset"]["as_int"],
        is_parameter=entry["is_param"] is True,
        requires_grad=meta["requires_grad"] is True,
    )
    if meta["layout"] != _STRIDED or stored.dtype not in DTYPE_BYTES:
        hint = "Repair the dense float model; quantize or sparsify the repaired one."
        detail = f"Tensor {name!r} is of dtype {stored.dtype} and layout {meta['layout']}, which cannot be trained."
        raise ModelError("quantized", detail, hint=hint)
    _check_geometry(name, stored, records)
    return stored


def _check_geometry(name: str, tensor: StoredTensor, records: Mapping[str, Record]) -> None:
    record = records.get(tensor.record)
    if record is None or not _TENSOR.fullmatch(tensor.record):
        raise tensor_geometry(f"Tensor {name!r} lies in record {tensor.record!r}, which the file does not have.")
    numbers = (*tensor.shape, *tensor.stride, tensor.offset)
    plain = len(tensor.shape) == len(tensor.stride) <= 32 and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
    if not plain:
        raise tensor_geometry(f"Tensor {name!r} has shape {tensor.shape[:8]} and strides {tensor.stride[:8]}.")
    held, rest = divmod(record.num_bytes, DTYPE_BYTES[tensor.dtype])
    reach = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True)) + 1
    if rest or (tensor.num_elements and (reach > held or tensor.num_elements > held)):
        detail = f"Tensor {name!r} of shape {tensor.shape}, strides {tensor.stride} and offset {tensor.offset} "
        raise tensor_geometry(detail + f"does not fit into record {tensor.record!r} of {record.num_bytes} bytes.")


def _check_flow(program: Program, held: Mapping[str, StoredTensor]) -> None:
    """Every value is made once, before it is read, and every tensor the program names is in the file."""
    known: set[str] = set()
    for item in program.inputs:
        if item.kind in ("parameter", "buffer", "constant") and item.target not in held:
            raise unsafe_program(f"The program uses {item.kind} {item.target!r}, which the file does not hold.")
        _make(known, [item.name], "an input")
    for operation in program.operations:
        _require(known, _names(operation.inputs), operation.target)
        _make(known, operation.outputs, operation.target)
    _require(known, [*_names(program.outputs), *(value for value, _ in program.mutations)], "the answer")
    buffers = {item.target for item in program.inputs if item.kind == "buffer"}
    strange = [buffer for _, buffer in program.mutations if buffer not in buffers]
    if strange or program.out_tree.num_leaves != len(program.outputs):
        what = f"buffer {strange[0]!r}" if strange else f"{len(program.outputs)} answers"
        raise unsafe_program(f"The program writes {what}, which its signature does not name.")


def _require(known: set[str], names: list[str], where: str) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise unsafe_program(f"{where[:120]} uses {missing[0]!r} before anything computes it.")


def _make(known: set[str], names: Sequence[str], where: str) -> None:
    named = [name for name in names if name]
    twice = [name for name in named if name in known]
    if twice or len(set(named)) != len(named):
        raise unsafe_program(f"{where[:120]} makes {(twice or named)[0]!r} for the second time.")
    known.update(named)


def _names(value: Any) -> list[str]:
    if isinstance(value, tuple | list):
        return [name for item in value for name in _names(item)]
    return [value.name] if isinstance(value, Ref) else []


def _check_trainable(num_parameters: int, constants: Mapping[str, StoredTensor]) -> None:
    if num_parameters == 0:
        hint = "Weights must be nn.Parameter attributes of the model when it is exported."
        detail = f"The program has no trainable parameters ({len(constants)} constant tensors)."
        raise ModelError("no_parameters", detail, hint=hint)

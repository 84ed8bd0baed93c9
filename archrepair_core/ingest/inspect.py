"""The safety gate: what an uploaded file is, decided by reading it. Imports no torch and runs nothing of the file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archrepair_core.errors import ModelError
from archrepair_core.ingest.conformance import check_objects
from archrepair_core.ingest.inert import Object, Storage, Tensor, iterate_values, quantized, tensor_geometry
from archrepair_core.ingest.pickles import read_pickle
from archrepair_core.ingest.program import ProgramSummary, check_program, refuse_findings
from archrepair_core.ingest.records import (
    ArchiveLimits,
    Record,
    RecordReader,
    pickle_not_torchscript,
    unsafe_archive,
)
from archrepair_core.ingest.versions import check_torchscript_version, torchscript_writer

_SOURCE = re.compile(r"code/(__torch__(?:/[A-Za-z_][A-Za-z0-9_]*)*)\.py")
_TENSOR = re.compile(r"(data|constants)/[0-9]{1,9}")
_NESTED = re.compile(r"\.(zip|pt|pth|pt2|ptl|jar|whl|npz|gz|bz2|xz|7z|tar|tgz|zst|rar)$", re.IGNORECASE)
_METADATA = {"data.pkl", "constants.pkl", "version", ".data/version", "byteorder"}
# Written by torch but not needed to rebuild the model: checked as zip records, never opened, never copied.
_IGNORED = re.compile(
    r"code/__torch__[A-Za-z0-9_/]*\.py\.debug_pkl|extra/.+|traced_inputs(\.pkl|/[0-9]{1,9})|bytecode(\.pkl|/[0-9]{1,9})"
    r"|mobile_debug_handles\.pkl|callstack_debug_map\.pkl|\.data/serialization_id|\.format_version|\.storage_alignment"
)
_FREEZE_HINT = (
    "Export without torch.jit.freeze and torch.jit.optimize_for_inference, which fold the weights into constants: "
    "torch.jit.save(torch.jit.script(model), 'model.pt')."
)


@dataclass(frozen=True)
class ArchiveSummary:
    """What the gate learned. `num_parameters` counts elements, tied weights once; `written_by` names torch releases.

    `modules` are code files of TorchScript, module paths of a .pt2 file.
    """

    format_version: int
    root_class: str
    modules: tuple[str, ...]
    num_records: int
    num_parameters: int
    num_storages: int
    storage_bytes: int
    written_by: str


@dataclass(frozen=True)
class CheckedArchive:
    """The records that may be copied: checked text and pickles by record name, and the names of tensor records."""

    summary: ArchiveSummary
    sources: Mapping[str, str]
    pickles: Mapping[str, bytes]
    tensors: tuple[str, ...]


def inspect_archive(path: Path, *, limits: ArchiveLimits | None = None) -> ArchiveSummary:
    """What `path` holds, if it is a safe, trainable TorchScript archive; every checksum verified.

    Raises ModelError whose code says why not; nothing of the file has run. Memory does not grow with tensor sizes.
    """
    limits = limits or ArchiveLimits()
    with RecordReader(path, limits) as reader:
        checked = check_records(reader, limits)
        for name in checked.tensors:
            for _ in reader.chunks(reader.records[name]):
                pass
    return checked.summary


def check_records(reader: RecordReader, limits: ArchiveLimits) -> CheckedArchive:
    """All checks but the checksums of tensor records, which belong to whoever reads those bytes."""
    _refuse_other_formats(reader.records)
    _check_record_names(reader.records)
    version = _read_version(reader)
    texts = _read_sources(reader, limits)
    code = check_program({module_name(name): text for name, text in texts.items()})
    if code.is_quantized:
        raise quantized(f"The model is quantized: it calls {', '.join(sorted(code.operators)[:4])}.")
    if code.constructs:
        refuse_findings(code)
    pickles = {
        name: reader.read(reader.records[name], max_bytes=limits.pickle_bytes) for name in ("constants.pkl", "data.pkl")
    }
    values = {name: read_pickle(data, name) for name, data in pickles.items()}
    storages = _check_storages(values, reader.records)
    root = _check_values(values, code)
    num_parameters = _count_parameters(root, code)
    _check_trainable(num_parameters, values["constants.pkl"], code)
    refuse_findings(code)
    _check_modes(root, code)
    summary = ArchiveSummary(
        format_version=version,
        root_class=root.class_name,
        modules=tuple(sorted(map(module_name, texts))),
        num_records=len(reader.records),
        num_parameters=num_parameters,
        num_storages=len(storages),
        storage_bytes=sum(storage.num_bytes for storage in storages.values()),
        written_by=torchscript_writer(version),
    )
    return CheckedArchive(summary, texts, pickles, tuple(storages))


def module_name(record_name: str) -> str:
    """`code/__torch__/a/b.py` -> `__torch__.a.b`."""
    return record_name.removeprefix("code/").removesuffix(".py").replace("/", ".")


def _refuse_other_formats(records: Mapping[str, Record]) -> None:
    if "model.json" in records:
        hint = "Load it with the torch that wrote it, and save it again with torch >= 1.6."
        raise ModelError("format_not_supported", "The archive is older than format version 3 (model.json).", hint=hint)
    if "data.pkl" in records and "constants.pkl" not in records:
        detail = "The file was written by torch.save: it holds pickled weights or an eager model, but no program."
        raise pickle_not_torchscript(detail)
    if "data.pkl" not in records or not any(_SOURCE.fullmatch(name) for name in records):
        detail = f"The file is a zip archive, but no TorchScript: it holds {', '.join(sorted(records)[:4])}."
        raise ModelError("not_torchscript", detail, hint="Export with torch.jit.save(torch.jit.script(model), path).")


def _check_record_names(records: Mapping[str, Record]) -> None:
    for name, record in records.items():
        if _NESTED.search(name):
            raise unsafe_archive(f"Record {name!r} is an archive inside the archive.")
        is_tensor = _TENSOR.fullmatch(name) is not None
        if not (is_tensor or name in _METADATA or _SOURCE.fullmatch(name) or _IGNORED.fullmatch(name)):
            raise unsafe_archive(f"Record {name!r} is none that TorchScript writes.")
        if is_tensor and not record.is_stored:
            raise unsafe_archive(f"Tensor record {name!r} is compressed; TorchScript stores tensors plainly.")


def _read_version(reader: RecordReader) -> int:
    record = reader.records.get("version") or reader.records.get(".data/version")
    text = reader.read(record, max_bytes=64).strip() if record else b""
    version = check_torchscript_version(text)
    order = reader.records.get("byteorder")
    if order is not None and reader.read(order, max_bytes=64) != b"little":
        detail = "The archive was written on a big-endian machine."
        raise ModelError("format_not_supported", detail, hint="Save it on x86-64 or ARM.")
    return version


def _read_sources(reader: RecordReader, limits: ArchiveLimits) -> dict[str, str]:
    records = [record for name, record in reader.records.items() if _SOURCE.fullmatch(name)]
    total = sum(record.num_bytes for record in records)
    if total > limits.sources_bytes:
        detail = f"The archive's code is {total} bytes; at most {limits.sources_bytes} are read."
        raise ModelError("archive_too_large", detail, hint="Script the model instead of tracing it: loops stay loops.")
    # latin-1 maps every byte: the check for ASCII comes with the message that names the file.
    return {record.name: reader.read(record, max_bytes=limits.source_bytes).decode("latin-1") for record in records}


def _check_storages(values: Mapping[str, Any], records: Mapping[str, Record]) -> dict[str, Storage]:
    """Record name to storage, each of exactly the record's size: torch itself reads without checking that."""
    storages: dict[str, Storage] = {}
    for pickle_name, root in values.items():
        folder = pickle_name.removesuffix(".pkl")
        for value in iterate_values(root):
            if not isinstance(value, Tensor):
                continue
            storage, name = value.storage, f"{folder}/{value.storage.key}"
            record = records.get(name)
            num_bytes = record.num_bytes if record else 0
            if num_bytes != storage.num_bytes or storages.setdefault(name, storage) != storage:
                detail = f"{pickle_name} expects {storage.num_bytes} bytes of {storage.dtype} in record {name!r}, "
                raise tensor_geometry(detail + f"which holds {num_bytes}.")
    return {name: storage for name, storage in storages.items() if name in records}


def _check_values(values: Mapping[str, Any], code: ProgramSummary) -> Object:
    root, constants = values["data.pkl"], values["constants.pkl"]
    if not isinstance(root, Object) or type(constants) is not tuple:
        detail = "data.pkl holds no module: the archive stores values, not a model."
        raise ModelError("not_torchscript", detail, hint="Save the scripted model itself: torch.jit.save(model, path).")
    check_objects(root, code.classes, "data.pkl")
    check_objects(constants, code.classes, "constants.pkl")
    return root


def _count_parameters(root: Object, code: ProgramSummary) -> int:
    parameters: dict[tuple[Any, ...], int] = {}
    for value in iterate_values(root):
        if not isinstance(value, Object):
            continue
        for name in code.classes[value.class_name].parameters:
            tensor = value.attributes.get(name)
            if isinstance(tensor, Tensor):
                parameters[tensor.storage.key, tensor.offset, tensor.shape, tensor.stride] = tensor.num_elements
    return sum(parameters.values())


def _check_trainable(num_parameters: int, constants: Any, code: ProgramSummary) -> None:
    num_constants = sum(isinstance(value, Tensor) for value in iterate_values(constants))
    if code.is_optimized or (num_parameters == 0 and num_constants):
        detail = f"The graph is frozen: it has {num_parameters} parameters and {num_constants} constant tensors."
        raise ModelError("frozen_graph", detail, hint=_FREEZE_HINT)
    if num_parameters == 0 and not code.operators:
        hint = "Weights must be nn.Parameter attributes of the model; buffers and constants cannot be trained."
        raise ModelError("no_parameters", "The model has no trainable parameters.", hint=hint)


def _check_modes(root: Object, code: ProgramSummary) -> None:
    """Every module has a `training` flag, unless it was frozen: train and eval mode would be undefined."""
    names = {value.class_name for value in iterate_values(root) if isinstance(value, Object)}
    for name in sorted(names):
        if "training" not in code.classes[name].attributes:
            raise ModelError("frozen_graph", f"Module {name} has no attribute 'training'.", hint=_FREEZE_HINT)

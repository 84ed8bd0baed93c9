"""From an uploaded file to a live ScriptModule: copy what the gate checked, load only the copy, check its graphs."""

import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import NODE_KINDS
from archrepair_core.ingest.declarations import Declarations, read_declarations
from archrepair_core.ingest.inspect import ArchiveSummary, CheckedArchive, check_records, module_name
from archrepair_core.ingest.program import operator_not_allowed, reprint
from archrepair_core.ingest.records import ArchiveLimits, RecordReader

_FOLDER = "archive"
# torch's type stubs leave out or misdescribe most of what its C++ module offers.
_native: Any = torch._C


@dataclass(frozen=True)
class LoadedArchive:
    """A loaded model, never called yet; `compilation_unit` holds the graphs of its free functions.

    `declarations` are the named tuples and enums its code declares.
    """

    root: torch.jit.ScriptModule
    compilation_unit: torch._C.CompilationUnit
    declarations: Declarations
    written_by: str = "unknown"


def ingest_archive(path: Path, work_dir: Path, *, limits: ArchiveLimits | None = None) -> LoadedArchive:
    """The model in `path`, by way of a checked copy in `work_dir`; raises ModelError if it is unsafe or unreadable."""
    # A folder of its own, gone afterwards: the upload itself may lie in `work_dir`, under any name.
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        copy = Path(folder) / "model.pt"
        summary = repack_archive(path, copy, limits=limits)
        return replace(load_archive(copy), written_by=summary.written_by)


def repack_archive(path: Path, target: Path, *, limits: ArchiveLimits | None = None) -> ArchiveSummary:
    """Writes `target` anew from the checked records of `path`, its code printed again from the syntax tree.

    Tensors are streamed. Raises ModelError as `inspect_archive` does; `target` is gone then.
    """
    limits = limits or ArchiveLimits()
    with RecordReader(path, limits) as reader:
        checked = check_records(reader, limits)
        try:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
                _write_records(copy, checked, reader)
        except ModelError:
            target.unlink(missing_ok=True)
            raise
    return checked.summary


def _write_records(copy: zipfile.ZipFile, checked: CheckedArchive, reader: RecordReader) -> None:
    for name in checked.tensors:
        record = reader.records[name]
        entry = zipfile.ZipInfo(f"{_FOLDER}/{name}")
        entry.file_size = record.num_bytes
        with copy.open(entry, "w") as stream:
            for chunk in reader.chunks(record):
                stream.write(chunk)
    for name, data in checked.pickles.items():
        copy.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}"), data)
    for name, text in checked.sources.items():
        copy.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}"), reprint(text, module_name(name)))
    copy.writestr(zipfile.ZipInfo(f"{_FOLDER}/version"), f"{checked.summary.format_version}\n")
    copy.writestr(zipfile.ZipInfo(f"{_FOLDER}/byteorder"), "little")


def load_archive(path: Path) -> LoadedArchive:
    """Loads a file written by `repack_archive` on the CPU, and checks every graph before anything can call it.

    Raises ModelError: `unreadable` if torch refuses it, `operator_not_allowed`, `unsafe_code` for forward hooks.
    """
    unit = _native.CompilationUnit()
    try:
        # What torch.jit.load does, but keeping the compilation unit, which knows the graphs of free functions.
        module = _native.import_ir_module(unit, str(path), torch.device("cpu"), {}, False)
    except (RuntimeError, IndexError, ValueError) as error:
        lines = str(error).strip().splitlines() or ["no message"]
        detail = f"torch {torch.__version__} cannot load the archive: {lines[0][:300]}"
        hint = "Check that torch.jit.load(path) works with this release of torch, and export the model with it again."
        raise ModelError("unreadable", detail, hint=hint) from error
    _check_graphs(unit, module)
    return LoadedArchive(torch.jit._recursive.wrap_cpp_module(module), unit, read_declarations(path))


def _check_graphs(unit: Any, root: Any) -> None:
    """The second reading, on what torch understood: only listed node kinds, no hooks anywhere."""
    places: dict[str, dict[str, None]] = {}
    for where, graph in _iterate_graphs(unit, root):
        for kind in _iterate_kinds(graph):
            if kind not in NODE_KINDS:
                places.setdefault(kind, {})[where] = None
    if places:
        raise operator_not_allowed({kind: tuple(found) for kind, found in places.items()})


def _iterate_graphs(unit: Any, root: Any) -> Iterator[tuple[str, torch._C.Graph]]:
    for function in unit.get_functions():
        yield function.qualified_name, function.graph
    stack, seen = [root], set[str]()
    while stack:
        module = stack.pop()
        if module._get_forward_hooks() or module._get_forward_pre_hooks():
            detail = f"The module {module.qualified_name} has forward hooks, which its graph does not show."
            raise ModelError("unsafe_code", detail, hint="Remove the hooks before torch.jit.script.")
        if module.qualified_name not in seen:
            seen.add(module.qualified_name)
            for name in module._method_names():
                yield f"{module.qualified_name}.{name}", module._get_method(name).graph
        stack.extend(child for _, child in _native.ModuleDict(module).items())


def _iterate_kinds(graph: torch._C.Graph) -> Iterator[str]:
    stack = list(graph.nodes())
    while stack:
        node = stack.pop()
        yield node.kind()
        for block in node.blocks():
            stack.extend(block.nodes())

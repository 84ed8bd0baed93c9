"""An uploaded file, read: what it answers (`reference`) and the editable model that answers the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from archrepair_core.ingest.archive import ingest_archive
from archrepair_core.ingest.decompile import decompile
from archrepair_core.ingest.finite import refuse_non_finite
from archrepair_core.ingest.records import ArchiveLimits, RecordReader
from archrepair_core.ingest.torch_export import ingest_export
from archrepair_core.ingest.torch_export_gate import is_export

Format = Literal["torchscript", "torch_export"]


@dataclass(frozen=True)
class IngestedModel:
    """The customer's model twice: `reference` is the file as it was and never changed, `model` its editable twin.

    Both take the same arguments and have the same `state_dict` keys; they share no tensor. `written_by` says which
    torch wrote the file, `input_shapes` what each input was without its batch, as far as the file tells.
    """

    format: Format
    reference: nn.Module
    model: nn.Module
    written_by: str = "unknown"
    input_shapes: tuple[tuple[int, ...], ...] = ()


def ingest_model(path: Path, work_dir: Path, *, limits: ArchiveLimits | None = None) -> IngestedModel:
    """Check the file, load the checked copy of it and rebuild it. Raises ModelError; nothing is known to agree yet."""
    limits = limits or ArchiveLimits()
    with RecordReader(path, limits) as reader:
        exported = is_export(reader.records)
    if exported:
        loaded = ingest_export(path, limits=limits)
        refuse_non_finite(loaded.reference)
        shapes = loaded.reference.input_shapes
        return IngestedModel("torch_export", loaded.reference, loaded.model, loaded.summary.written_by, shapes)
    archive = ingest_archive(path, work_dir, limits=limits)
    refuse_non_finite(archive.root)
    model = decompile(archive.root, archive.compilation_unit, archive.declarations)
    return IngestedModel("torchscript", archive.root, model, archive.written_by)

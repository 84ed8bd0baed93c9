"""What is exported, and what came of it: the same two records for every format."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.export.parity import Agreement, TensorChanges, device_of
from archrepair_core.export.program import Capture, capture_program
from archrepair_core.modes import eval_mode

# Fields of an Export that only say which tensors are meant: hundreds of names, for the report alone.
_NAME_LISTS = ("unchanged", "changed", "added", "removed")


@dataclass(frozen=True)
class Subject:
    """A repaired model in eval mode and the file it came from; `batches` are inputs of two sizes, the first is 1.

    `genotype` is plain data: which modules were trained and which branches were added.
    """

    module: nn.Module
    original: nn.Module
    batches: tuple[Tensor, ...]
    genotype: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def capture(self) -> Capture:
        """The graph of `torch.export`, made once for the formats that need it."""
        with eval_mode(self.module), torch.no_grad():
            return capture_program(self.module, self.batches[-1], self.original)


@dataclass(frozen=True)
class Written:
    """A file that was written, read again and found equal; `note` is what its reader should know."""

    method: str
    agreement: Agreement
    changes: TensorChanges
    note: str = ""


@dataclass(frozen=True)
class Export:
    """One output format: the file and its proof, or `file` None and in `note` the reason why there is none."""

    format: str
    file: str | None
    note: str
    written: Written | None = None

    @property
    def method(self) -> str:
        """How it was made, e.g. `script` or `trace`; empty if it was not."""
        return self.written.method if self.written else ""

    def to_json(self) -> dict[str, Any]:
        """Flat plain data, with the name of every tensor that changed or did not."""
        shown: dict[str, Any] = {"format": self.format, "file": self.file, "method": self.method, "note": self.note}
        if self.written:
            shown |= asdict(self.written.agreement) | asdict(self.written.changes)
        return shown

    def summary(self) -> dict[str, Any]:
        """As `to_json`, with the number of tensors for their names."""
        return {name: len(value) if name in _NAME_LISTS else value for name, value in self.to_json().items()}


def two_batches(inputs: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """The first input alone, and all of them or the only one twice, where the module's tensors are."""
    moved = inputs.to(device_of(module))
    return moved[:1], moved if len(moved) > 1 else torch.cat([moved, moved])

"""The tensors of a .pt2 file, straight from its checked records: nothing of torch reads the file."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from archrepair_core.ingest.records import RecordReader
from archrepair_core.ingest.torch_export_gate import StoredTensor
from archrepair_core.ingest.torch_export_graph import DTYPES


def load_tensors(reader: RecordReader, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Parameters and tensors by name; those of one record share its storage, the same view of it is one Parameter."""
    storages: dict[str, torch.UntypedStorage] = {}
    parameters: dict[StoredTensor, nn.Parameter] = {}
    loaded: dict[str, Tensor] = {}
    for name, entry in stored.items():
        if entry.record not in storages:
            storages[entry.record] = _read_storage(reader, entry.record)
        tensor = torch.empty(0, dtype=DTYPES[entry.dtype])
        tensor.set_(storages[entry.record], entry.offset, entry.shape, entry.stride)
        if entry.is_parameter:
            trains = entry.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
            tensor = parameters.setdefault(entry, nn.Parameter(tensor, requires_grad=trains))
        loaded[name] = tensor
    return loaded


def _read_storage(reader: RecordReader, record: str) -> torch.UntypedStorage:
    storage = torch.UntypedStorage(reader.records[record].num_bytes)
    target = torch.empty(0, dtype=torch.uint8).set_(storage)
    start = 0
    for chunk in reader.chunks(reader.records[record]):
        # A writable copy of the chunk: torch warns about memory it may not write to.
        target[start : start + len(chunk)] = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
        start += len(chunk)
    return storage

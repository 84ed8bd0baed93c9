"""What enters a cut, input by input and view by view: kept on disk once computed, or computed again each time.

Both give the same numbers, rounded to fp16, so a smaller budget of disk costs seconds and not accuracy.
Shapes: V views, N inputs, B asked for at once, K classes.
"""

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archrepair_core.data.augment import View, viewed
from archrepair_core.data.images import LabelledImages
from archrepair_core.spec import Preprocessing

FP16_MAX = 65504.0
COMPUTED_AT_ONCE = 64
Indices = npt.NDArray[np.intp]


class Rows(Protocol):
    """The inputs of one role at a cut."""

    @property
    def num_views(self) -> int:
        """Under how many views each input can be asked for; view 0 is the plain image."""

    def __len__(self) -> int:
        """How many inputs."""

    def read(self, views: Indices, items: Indices) -> Tensor:
        """The values [B, ...] for pairs (view, item), fp16."""


@dataclass(frozen=True)
class Features:
    """The inputs of a cut from one role or several, one after the other; labels and the original's logits of each."""

    parts: tuple[Rows, ...]
    original_NK: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    @cached_property
    def num_views_N(self) -> Indices:
        """Under how many views each input can be asked for."""
        return np.repeat([part.num_views for part in self.parts], [len(part) for part in self.parts])

    @cached_property
    def passing_N(self) -> npt.NDArray[np.bool_]:
        """Which inputs the original gets right."""
        return np.asarray(self.original_NK.argmax(1) == self.labels_N)

    def labelled(self, items: Indices, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs at `items` as they are, in that order, with their labels."""
        for start in range(0, len(items), batch_size):
            rows = items[start : start + batch_size]
            yield self.batch(np.zeros_like(rows), rows, device), self.labels_N[rows].to(device)

    def subset(self, items: Indices) -> "Features":
        """The inputs at `items`, which are in ascending order, as often as they stand there."""
        parts: list[Rows] = []
        for start, part in zip(self._part_starts, self.parts, strict=False):
            inside = items[(items >= start) & (items < start + len(part))] - start
            parts += [ChosenRows(part, inside)] if len(inside) else []
        return Features(tuple(parts), self.original_NK[items], self.labels_N[items])

    @cached_property
    def _part_starts(self) -> Indices:
        return np.cumsum([0, *map(len, self.parts)])

    def batch(self, views: Indices, items: Indices, device: torch.device) -> Tensor:
        """Inputs of the cut for pairs (view, item), float32 on `device`, without gradients."""
        part_B = np.searchsorted(self._part_starts, items, side="right") - 1
        found: Tensor | None = None
        for number in np.unique(part_B):
            where = np.flatnonzero(part_B == number)
            values = self.parts[number].read(views[where], items[where] - self._part_starts[number])
            if len(where) == len(items):
                return values.to(device, torch.float32)
            if found is None:
                shape = (len(items), *values.shape[1:])
                found = torch.empty(shape, device=device, memory_format=memory_format_of(values))
            found[torch.from_numpy(where).to(device)] = values.to(device, torch.float32)
        assert found is not None, "a batch of nothing"
        return found

    def plain(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Every input as it is, in order."""
        for start in range(0, len(self), batch_size):
            items = np.arange(start, min(start + batch_size, len(self)))
            yield self.batch(np.zeros_like(items), items, device)


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """Some of the inputs of other rows."""

    rows: Rows
    chosen: Indices

    @property
    def num_views(self) -> int:
        """As of all rows."""
        return self.rows.num_views

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, views: Indices, items: Indices) -> Tensor:
        """As `Rows.read`."""
        return self.rows.read(views, self.chosen[items])


class DiskBudget:
    """Bytes that features may take on disk, and those that live ones take."""

    def __init__(self, max_bytes: float = math.inf) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    @property
    def free(self) -> float:
        """Bytes that may still be taken."""
        return self.max_bytes - self.used


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows in a file without a name, each computed when it is first asked for: a short training pays for what it reads.

    Always so many are computed at once, and none twice: a row is then the same to the bit whatever others it comes
    with (531 of 531 rows of each of five networks, on a CPU), and a training that goes on after a crash sees what it
    would have seen. The file is read, not mapped: mapped pages would count as memory of this process. It is gone with
    the last reference, or with the process however it ends. Channels lie last in it where they do so in the network,
    and what is read lies as it would there.
    """

    source: Rows
    descriptor: int
    row_shape: tuple[int, ...]
    channels_last: bool
    known_VN: npt.NDArray[np.bool_]

    @property
    def num_views(self) -> int:
        """As of the source."""
        return len(self.known_VN)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, views: Indices, items: Indices) -> Tensor:
        """As `Rows.read`."""
        places = views * len(self) + items
        self._compute(places)
        shape = (*self.row_shape[1:], self.row_shape[0]) if self.channels_last else self.row_shape
        buffer = np.empty((len(items), *shape), np.float16)
        for row, place in zip(buffer.reshape(len(items), -1), places.tolist(), strict=True):
            os.preadv(self.descriptor, [row.data], place * row.nbytes)
        rows = torch.from_numpy(buffer)
        return rows.permute(0, 3, 1, 2) if self.channels_last else rows

    def _compute(self, places: Indices) -> None:
        """Have the rows in these places of the file, numbered view by view, in it."""
        known = self.known_VN.reshape(-1)
        wanted = np.unique(places)
        wanted = wanted[~known[wanted]]
        for start in range(0, len(wanted), COMPUTED_AT_ONCE):
            some = self._filled_up(wanted[start : start + COMPUTED_AT_ONCE])
            rows = self.source.read(*divmod(some, len(self))).cpu()
            rows = (rows.permute(0, 2, 3, 1) if self.channels_last else rows).contiguous()
            for row, place in zip(rows.numpy().reshape(len(some), -1), some.tolist(), strict=True):
                _write_all(self.descriptor, row.data.cast("B"), place * row.nbytes)
            known[some] = True

    def _filled_up(self, some: Indices) -> Indices:
        """With the next that nobody asked for yet; where there are none, again and again the same."""
        if len(some) < COMPUTED_AT_ONCE:
            unknown = np.setdiff1d(np.flatnonzero(~self.known_VN), some, assume_unique=True)
            some = np.concatenate([some, unknown[: COMPUTED_AT_ONCE - len(some)]])
        return np.resize(some, COMPUTED_AT_ONCE)


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """How a tensor [N, ...] lies in memory: channels last, or in the order of its dimensions."""
    is_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last and not tensor.is_contiguous() else torch.contiguous_format


def store_rows(source: Rows, sample: Tensor, directory: Path, budget: DiskBudget) -> StoredRows:
    """Keep what `source` gives in a file in `directory`; `sample` [B, ...] is some of it, as it lies in memory."""
    row_shape, known_VN = tuple(sample.shape[1:]), np.zeros((source.num_views, len(source)), dtype=bool)
    num_bytes = 2 * math.prod(row_shape) * known_VN.size
    descriptor, path = tempfile.mkstemp(prefix="features-", dir=directory)
    is_last = memory_format_of(sample) == torch.channels_last
    stored = StoredRows(source, descriptor, row_shape, is_last, known_VN)
    budget.used += num_bytes
    weakref.finalize(stored, _forget, descriptor, budget, num_bytes)
    os.unlink(path)
    return stored


def _forget(descriptor: int, budget: DiskBudget, num_bytes: int) -> None:
    os.close(descriptor)
    budget.used -= num_bytes


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def rounded(values: Tensor) -> Tensor:
    """As fp16; what does not fit becomes the largest number that does."""
    return values.clamp(-FP16_MAX, FP16_MAX).half()


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """Rows that `prefix` computes each time: slower, but they take no disk however many views there are.

    `prefix` takes preprocessed images on `device`, and leaves no graph.
    """

    images: LabelledImages
    preprocessing: Preprocessing
    views: tuple[View, ...]
    prefix: Callable[[Tensor], Tensor]
    device: torch.device

    @property
    def num_views(self) -> int:
        """How many augmented views each input has."""
        return len(self.views)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, views: Indices, items: Indices) -> Tensor:
        """As `Rows.read`."""
        order = np.argsort(views, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(views[order])) + 1)
        seen = [
            viewed(self.images.images, items[group], self.preprocessing, self.views[views[group[0]]])
            for group in groups
        ]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return rounded(self.prefix(torch.cat(seen)[place].to(self.device)))

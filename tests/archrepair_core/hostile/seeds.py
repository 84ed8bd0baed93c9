"""Archives to damage: the hand-written one, and what torch itself writes for a network with most kinds of values."""

import io
import zipfile
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.archrepair_core.hostile.archives import records
from tests.archrepair_core.hostile.mutations import Records


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


class Mode(Enum):
    FAST = 1
    SLOW = 2


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Pair:
        return Pair(self.drop(torch.relu(self.norm(self.conv(x)) + x)), None)


class Varied(nn.Module):
    """Loops, branches, lists, dictionaries, named tuples, enums, optional values, tied weights."""

    names: list[str]
    table: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4, 4)
        self.tied = self.head.weight
        self.names = ["a", "b"]
        self.table = {"a": 1}
        self.scale = 0.5
        self.mode = Mode.FAST
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("expected 4 dimensions")
        y = self.stem(x)
        sizes: list[int] = []
        for block in self.blocks:
            pair = block(y)
            y, more = pair.first, pair.second
            if more is not None:
                y = y + more
            sizes.append(y.size(-1))
        i = 0
        while i < len(self.names):
            y = y * self.scale if self.mode == Mode.FAST else y
            i += self.table["a"]
        return self.head(y.mean([2, 3])) + float(sizes[0] - sizes[-1]) + (self.tied.sum() * 0)


def seed_archives() -> list[Records]:
    """The records of each archive by name."""
    torch.manual_seed(0)
    scripted, traced = io.BytesIO(), io.BytesIO()
    model = Varied().eval()
    torch.jit.save(torch.jit.script(model), scripted)
    torch.jit.save(
        torch.jit.trace(nn.Sequential(model.stem, nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)), EXAMPLE), traced
    )
    return [records(), _records_of(scripted), _records_of(traced)]


EXAMPLE = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)


def _records_of(file: io.BytesIO) -> Records:
    with zipfile.ZipFile(file) as saved:
        names = [name for name in saved.namelist() if not name.endswith(("debug_pkl", "serialization_id"))]
        return {name.split("/", 1)[1]: saved.read(name) for name in names}

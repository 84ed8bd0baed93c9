"""A small scripted archive, and the means to write a changed copy of it."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

FOLDER = "small"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


class Small(nn.Module):
    """Two blocks of width 4, a linear head: 4·3·9+4 + 2·(4·4·9+4+8) + 4·5+5 = 449 parameters."""

    names: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.head = nn.Linear(4, 5)
        self.names = ["a", "b"]
        self.scale = 0.5

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("expected 4 dimensions")
        for _ in range(2):
            x = x * self.scale
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


@pytest.fixture(scope="session")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archives") / f"{FOLDER}.pt"
    # torch numbers class names it has seen before in this process, and the tests name the archive's files.
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()
    torch.jit.script(Small().eval()).save(path)
    return path


@pytest.fixture
def changed(small_archive: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed({name: new bytes | None})` writes a copy with records replaced, removed or added."""

    def write(records: Mapping[str, bytes | None]) -> Path:
        target = tmp_path / "changed.pt"
        with zipfile.ZipFile(small_archive) as source, zipfile.ZipFile(target, "w") as copy:
            kept = {entry.filename.removeprefix(f"{FOLDER}/"): source.read(entry) for entry in source.infolist()}
            for name, data in {**kept, **records}.items():
                if data is not None:
                    copy.writestr(f"{FOLDER}/{name}", data)
        return target

    return write


@pytest.fixture
def record(small_archive: Path) -> Callable[[str], bytes]:
    """`record(name)` is that record of the small archive."""

    def read(name: str) -> bytes:
        with zipfile.ZipFile(small_archive) as archive:
            return archive.read(f"{FOLDER}/{name}")

    return read

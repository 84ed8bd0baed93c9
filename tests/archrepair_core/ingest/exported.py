"""Small networks saved by torch.export, and the means to write a changed copy of such a file."""

import json
import logging
import zipfile
from collections import namedtuple
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Answer = namedtuple("Answer", ["logits", "features"])


class Residual(nn.Module):
    """conv → norm → relu → dropout, around which the input goes; one relu called twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.dropout(self.norm(self.relu(self.conv(x)))))


class SmallNet(nn.Module):
    """Residual blocks, functional dropout, a view by the batch size, a lifted constant, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Residual(4), Residual(4))
        self.head = nn.Linear(4, 5)
        self.register_buffer("offset", torch.full((4,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean([2, 3]) * torch.tensor([2.0]) + self.offset
        x = nn.functional.dropout(x, 0.5, self.training)
        return self.head(x.view(x.shape[0], -1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6, bias=False)
        self.decode = nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class Unlike(nn.Module):
    """One submodule called for two different things."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Switch()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x, True) + self.part(x, False))


class Switch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor, double: bool) -> Tensor:
        return torch.relu(self.inner(x)) * 2 if double else torch.sigmoid(self.inner(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(5, 4)

    def forward(self, image: Tensor, context: Tensor, scale: float = 0.5) -> dict[str, Tensor]:
        both = self.left(image) + scale * self.right(context)
        return {"logits": both, "norm": both.norm(dim=1)}


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], None]:
        y = self.layer(x)
        return y, (y.relu(), y + 1), None


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, pair: tuple[Tensor, dict[str, Tensor]]) -> Answer:
        y = self.layer(x) + pair[0] + pair[1]["shift"]
        return Answer(y, y * 2)


class FromBuffer(nn.Module):
    """A Sequential fed with a buffer: its first layer sees no input of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(4, 2))
        self.bias = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.bias(self.table).sum(0)


class Tokens(nn.Module):
    """A class token expanded to the batch, attention by hand, heads in a view, parts taken by split."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.norm(torch.cat([self.token.expand(batch, -1, -1), x], 1))
        q, k, v = self.qkv(x).reshape(batch, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        first, second = mixed.transpose(1, 2).reshape(batch, -1, 8).split(4, dim=-1)
        return self.head(torch.cat([second, first], -1)[:, 0])


class BatchBound(nn.Module):
    """Mixes the images of a batch: no other batch size gives these answers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.t()).t()


class Gradless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        return self.layer(y)


@contextmanager
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def save_export(
    model: nn.Module, path: Path, *examples: Any, dynamic: bool = True, mode: str = "eval", **keywords: Any
) -> Path:
    """`torch.export.save` of the model; with `dynamic` every tensor has the same dynamic first dimension."""
    getattr(model, mode)()
    shapes: Any = None
    if dynamic:
        batch = torch.export.Dim("batch")
        shapes = [{0: batch} if isinstance(example, Tensor) else None for example in examples]
    with _quiet():
        program = torch.export.export(model, examples, keywords or None, dynamic_shapes=shapes)
        torch.export.save(program, path)
    return path


def rewritten(
    source: Path,
    target: Path,
    *,
    records: Mapping[str, bytes | None] | None = None,
    edit: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Path:
    """A copy with records replaced, removed or added, and parsed JSON records edited in place."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        folder = archive.namelist()[0].split("/")[0]
        kept: dict[str, bytes | None] = {
            entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()
        }
        for name, change in (edit or {}).items():
            data = json.loads(kept[name] or b"")
            change(data)
            kept[name] = json.dumps(data).encode()
        for name, data in {**kept, **(records or {})}.items():
            if data is not None:
                copy.writestr(f"{folder}/{name}", data)
    return target

"""Nets by hand that are about what a module holds: children in lists and dicts, tied weights, buffers, state."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(4)])
        self.nested = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, 3, 1), nn.ReLU()]), nn.ModuleList([nn.Tanh()])])
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(3, 1, 1)) for _ in range(3)])
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms)):  # noqa: B905
            y = norm(layer(x))
            x = x + y if i % 2 == 0 else F.relu(y)
        for group in self.nested:
            for layer in group:
                x = layer(x)
        x = self.layers[-1](x) + len(self.layers)
        for scale in self.scales:
            x = x * scale
        return self.head((x + self.scales[0]).mean([2, 3]))


class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict(
            OrderedDict(
                [("a-b", nn.Conv2d(3, 4, 1)), ("wide", nn.Conv2d(3, 4, 3, padding=1)), ("1", nn.Conv2d(3, 4, 1))]
            )
        )
        self.head = nn.Sequential(OrderedDict([("drop", nn.Dropout(0.3)), ("fc", nn.Linear(4, 5))]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for name, branch in self.branches.items():
            outputs[name] = branch(x)
        total = outputs["a-b"]
        for name in self.branches:
            total = total + outputs[name]
        if "wide" in self.branches:
            total = total + self.branches["wide"](x)
        return {"logits": self.head(total.mean([2, 3]))}


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(12, 6)
        self.decode = nn.Linear(6, 12)
        self.decode.weight = nn.Parameter(torch.rand(12, 6))
        self.again = nn.Linear(12, 6)
        self.again.weight = self.encode.weight
        self.mix = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.same = self.mix

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.mix(self.encode(x)) + self.same(self.again(x))
        return F.linear(code, self.encode.weight.t()) + self.decode(code), code


class Recurrent(nn.Module):
    """The same layer called again and again."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.cell(x) + x
        return self.head(x.mean([2, 3]))


class Buffers(nn.Module):
    """Kept and temporary buffers, updated in forward: a running mean of its own, counters, a window."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("window", torch.hann_window(8), persistent=False)
        self.register_buffer("absent", None)
        self.steps = 0
        self.seen = [0]
        self.last = torch.zeros(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean([0, 2, 3])
            self.calls += 1
            self.steps = self.steps + 1
            self.seen.append(x.size(0))
            self.last = x.detach().mean([0, 2, 3])
        y = (x * self.window).mean([2, 3]) - self.mean
        return self.head(y + self.last) * (1 + self.steps) + self.calls


class InPlaceBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.Parameter(torch.ones(3))
        self.register_buffer("running", torch.ones(3))
        self.register_buffer("table", torch.zeros(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean([2, 3])
        if self.training:
            with torch.no_grad():
                self.running.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
                self.table[0] = y.detach()[0]
        return y * self.norm / self.running + self.table.sum(0)


class Noise(nn.Module):
    """Drop-path and noise by hand, in train mode only."""

    def __init__(self, rate: float = 0.25):
        super().__init__()
        self.rate = rate
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def drop_path(self, y: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return y
        keep = 1 - self.rate
        shape = (y.shape[0],) + (1,) * (y.ndim - 1)
        return y * y.new_empty(shape).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.conv(x))
        if self.training:
            y = y + torch.randn_like(y) * 0.1 + torch.rand(y.shape, dtype=y.dtype, device=y.device)
        return self.head(F.dropout(y.mean([2, 3]), p=0.5, training=self.training))


class Typed(nn.Module):
    """A classifier in any floating type, with a constant, a cast and a mask that follow it."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.5, 1.0, 3.0]))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y = y * (y > 0.1).to(y.dtype) + torch.ones(1, dtype=x.dtype)
        return self.head(y.mean((2, 3))) * self.scale


class Mixed(nn.Module):
    """Half weights inside a net that is otherwise float32."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)).to(torch.bfloat16)).float()


class SeveralInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3)
        self.table = nn.Linear(5, 4)
        self.words = nn.Embedding(20, 4, padding_idx=0)
        self.bag = nn.EmbeddingBag(20, 4)
        self.head = nn.Bilinear(4, 4, 3)

    def forward(self, image: Tensor, table: Tensor, words: Tensor) -> dict[str, Tensor]:
        left = self.image(image).mean([2, 3]) + self.table(table)
        right = self.words(words).sum(1) + self.bag(words)
        return {"logits": self.head(left, right), "left": left}


class NestedInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, pair: tuple[Tensor, Tensor], more: list[Tensor], named: dict[str, Tensor]) -> Tensor:
        first, second = pair
        return self.head(first + second * more[0] + more[-1] + named["x"])


class Bottle(nn.Module):
    def __init__(self, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.skip: nn.Module | None = nn.AvgPool2d(2) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        if self.skip is not None:
            identity = self.skip(x)
        return F.relu(self.bn1(self.conv1(x)) + identity)


class OptionalChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Bottle(3, 1), Bottle(3, 2))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean([2, 3]))

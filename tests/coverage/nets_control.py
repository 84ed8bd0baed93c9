"""Nets by hand whose forward is a program: branches, loops, early returns, lists, dicts, strings, numbers."""

import math
from enum import Enum
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """What the nets of this file share: a convolution, and a head that takes its channels."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)

    def classify(self, y: Tensor) -> Tensor:
        return self.head(y.mean([2, 3]))


class NestedReturns(Head):
    def pick(self, y: Tensor, n: int) -> Tensor:
        if n > 2:
            if n > 5:
                return y * 3
            for i in range(n):
                if i == 3:
                    return y * i
                if i == 1:
                    continue
                y = y + i
        else:
            while True:
                y = y * 0.5
                if bool(y.abs().max() < 1.0):
                    return y - 1
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.pick(self.conv(x), x.size(0)))


class NestedLoops(Head):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        total = 0
        for i in range(3):
            for j in range(i, 4, 2):
                if (i + j) % 3 == 0:
                    break
                total += i * j
                y = y + torch.sin(y) * j
            else_count = i
            total -= else_count
        n = 10
        while n > 1 and total < 100:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            total += n
        return self.classify(y) * (1 + total / 100)


class Comprehensions(Head):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        parts = [part * (i + 1) for i, part in enumerate(y.chunk(3, dim=1))]
        pairs = {i: part.mean() for i, part in enumerate(parts)}
        widths = [part.size(1) for part in parts]
        names = [str(width) for width in widths]
        scale = sum(widths) + len(names) + max(widths) - min(widths)
        y = torch.cat([part + pairs[i] for i, part in enumerate(parts)], 1)
        for part, width in zip(parts, widths):  # noqa: B905  # TorchScript has no strict
            y = y + part.mean() * width
        return self.classify(y) * scale if all([w > 0 for w in widths]) else self.classify(y)  # noqa: C419


class ListMethods(Head):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        sizes = [3, 1, 2]
        sizes.sort()
        sizes.insert(1, 7)
        sizes.extend([4, 4])
        sizes.reverse()
        last = sizes.pop()
        first = sizes.pop(0)
        sizes.remove(7)
        del sizes[0]
        index = sizes.index(3)
        ordered = sorted([5, 3, 4])
        kept: list[Tensor] = []
        kept.append(y)
        kept += [y * 2, y * 3]
        kept[-1] = kept[0] + kept[1]
        kept = kept[1:]
        nested: list[list[int]] = [[1, 2], [3]]
        nested[1].append(last)
        a, b = nested[0]
        number = first + index + ordered[0] + sizes.count(4) + a * b + nested[1][-1] + len(kept)
        return self.classify(kept[-1]) * number / 10


class DictMethods(Head):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        found["conv"] = self.conv(x)
        found["logits"] = self.classify(found["conv"])
        counts = {1: "one", 2: "two"}
        counts.update({3: "three"})
        extra = found.pop("conv")
        if "conv" not in found and 3 in counts:
            found["mean"] = extra.mean([1, 2, 3])
        missing = counts.get(9)
        text = counts.get(1, "none")
        if missing is None and text == "one":
            found["logits"] = found["logits"] * len(counts)
        default = counts.setdefault(4, "four")
        for key, value in counts.items():
            if len(value) == len(default):
                found["logits"] = found["logits"] + key
        for name in found.keys():  # noqa: SIM118
            found[name] = found[name] + len(name)
        return found


class Strings(Head):
    def __init__(self, mode: str = "Max-Mean"):
        super().__init__()
        self.mode = mode
        self.options = ["max", "mean"]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        mode = self.mode.lower().replace("-", "_")
        first, second = mode.split("_")
        if mode.startswith(first) and mode.endswith("mean") and first in self.options:
            y = y * len(mode.strip())
        name = "{}-{}".format(first, second)  # noqa: UP032
        label = f"{name}:{y.dim()}" + "%d" % len(first)  # noqa: UP031
        joined = ",".join(self.options)
        if label == "max-mean:43" and joined.find("mean") == 4 and second.upper() == "MEAN":
            y = y + ord("a") - 96
        elif mode[0] == "m":
            y = y - 1
        return self.classify(y)


class Numbers(Head):
    depth: Final[int] = 3

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        n, h, w = x.size(0), x.shape[2], x.size(-1)
        area = h * w
        side = int(math.sqrt(area)) + math.floor(area / 7) - math.ceil(h / 3) + int(math.log(8.0))
        ratio = float(h) / w + 2**self.depth + math.exp(0.5) * math.pi + round(2.6) + abs(-3) + pow(h, 2) % 5
        low, high = min(h, w), max(h, w)
        flags = (n > 1) == (h >= w) or not (low < high < 100)
        bits = (h & 6) | (1 << 2) ^ 5
        negative = -h // 2 + h % 3
        inside = 0 < n <= 64
        y = y * ratio / side + bits + negative + int(flags) + float(inside)
        return self.classify(y / (y.numel() // max(n, 1)) * float("1.5")) + torch.tensor(float(area)).log().item()


class Color(Enum):
    RED = 1
    BLUE = 2


class Enums(Head):
    def __init__(self):
        super().__init__()
        self.color = Color.BLUE

    def tint(self, y: Tensor, color: Color) -> Tensor:
        if color == Color.RED:
            return y * 2
        return y * color.value

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.tint(self.conv(x), self.color) + self.tint(x.mean(1, True), Color.RED))


class Size(NamedTuple):
    height: int
    width: int


class Answer(NamedTuple):
    logits: Tensor
    features: Tensor | None
    size: Size


class NamedAnswers(Head):
    def measure(self, y: Tensor) -> Size:
        return Size(y.size(2), width=y.size(3))

    def forward(self, x: Tensor) -> Answer:
        y = self.conv(x)
        size = self.measure(y)
        height, width = size
        logits = self.classify(y) * size.height + height + width
        return Answer(logits, y if self.training else None, size)


class NamedInput(Head):
    def scaled(self, y: Tensor, size: Size) -> Tensor:
        return y * size.height / size[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.scaled(self.conv(x), Size(2, 3)))


class Plain(NamedTuple):
    logits: Tensor
    features: Tensor


class NamedTensors(Head):
    def forward(self, x: Tensor) -> Plain:
        y = self.conv(x)
        return Plain(self.classify(y), y)


class TupleOfTuples(Head):
    def forward(self, x: Tensor) -> tuple[tuple[Tensor, tuple[Tensor, int]], list[tuple[Tensor, str]]]:
        y = self.conv(x)
        pair = (y.mean(), (y.std(), 2))
        first, (second, count) = pair
        both = (self.classify(y) + first + second * count, pair[1])
        return both, [(y.amax((2, 3)), "max"), (y.amin((2, 3)), "min")]


class Optionals(Head):
    def __init__(self):
        super().__init__()
        self.extra: Tensor | None = None
        self.scale: float | None = 2.0

    def shift(self, y: Tensor, by: Tensor | None = None, times: int = 1, name: str = "shift") -> Tensor:
        if by is not None:
            y = y + by * times
        return y * len(name)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 1.5, sizes: list[int] | None = None
    ) -> Tensor:
        y = self.conv(x)
        if mask is None:
            mask = torch.ones_like(y)
        own = self.scale
        if own is not None:
            scale = scale * own
        if self.extra is not None:
            y = y + 1
        chosen = sizes if sizes is not None else [2, 3]
        y = self.shift(y * mask, y.mean(), times=2, name="by")
        y = self.shift(y, times=chosen[0])
        return self.classify(y) * scale


class Unions(Head):
    def merge(self, y: Tensor | list[Tensor]) -> Tensor:
        inputs = [y] if isinstance(y, Tensor) else y
        return torch.cat(inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.classify(self.merge(y) + self.merge([y[:, :3], y[:, 3:]]))


class AnyValue(Head):
    def weight_of(self, value: Any) -> float:
        if isinstance(value, int):
            return float(value)
        if isinstance(value, str):
            return float(len(value))
        if isinstance(value, list):
            return 0.5
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.conv(x)) * (self.weight_of(3) + self.weight_of("ab") + self.weight_of(1.5))


class NoGrad(Head):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean()
        y = self.conv(x) / scale
        with torch.no_grad():
            y_mean = y.mean() if bool(scale > 0.0) else y.sum()
        return self.classify(y - y_mean.detach())


def free_gate(y: Tensor, by: float = 0.5, scale: int = 2) -> Tensor:
    return torch.where(y > by, y, y * scale)


def twice_gated(y: Tensor) -> tuple[Tensor, Tensor]:
    return free_gate(y), free_gate(y, by=1.0)


@torch.jit.script_if_tracing
def gated_loop(y: Tensor, times: int) -> Tensor:
    for _ in range(times):
        y = y + torch.tanh(y)
    return y


class FreeFunctions(Head):
    @staticmethod
    def halve(y: Tensor) -> Tensor:
        return y / 2

    def forward(self, x: Tensor) -> Tensor:
        low, high = twice_gated(self.conv(x))
        return self.classify(gated_loop(self.halve(low) + high, x.size(0)))


class Asserts(Head):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "four dimensions"
        torch._assert(x.size(1) == 3, f"three channels, not {x.size(1)}")
        if x.size(1) != 3:
            raise ValueError(f"not {x.shape}")
        y = self.conv(x)
        y = y + 1 if torch.jit.is_scripting() else y + 1.0
        if hasattr(self, "missing"):
            y = y * 7
        return self.classify(y)


class Exported(Head):
    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).mean([2, 3])

    @torch.jit.export
    def both(self, x: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        y = self.features(x)
        return y * scale, self.head(y)

    @torch.jit.unused
    def draw(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Interval(nn.Module):
    """A child whose method is not called forward, and a property."""

    def __init__(self, low: float):
        super().__init__()
        self.low = low
        self.weight = nn.Parameter(torch.ones(1))

    @property
    def middle(self) -> float:
        return self.low + 0.5

    @torch.jit.export
    def clip(self, y: Tensor) -> Tensor:
        return y.clamp(self.low, self.low + 1) * self.weight + self.middle


class OtherMethods(Head):
    def __init__(self):
        super().__init__()
        self.interval = Interval(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.interval.clip(self.conv(x)))

"""What convolving channels last is worth on this processor: `python -m benchmarks.layout`, a few minutes on one thread.

Networks of the zoo, untrained: how fast they run has nothing to do with what they learned. Both orders take turns in
one process, and the fastest turn of each counts, since whatever else runs on the machine only ever adds.
"""

import copy
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from archrepair_core.layout import lay_out_
from benchmarks.zoo import ZOO

NETWORKS = ("resnet18", "densenet", "mobilenetv3", "convnext", "vit")
BATCH, TURNS, PASSES = 64, 4, 3


def forward(model: nn.Module, inputs: Tensor) -> None:
    """As an evaluation does."""
    with torch.inference_mode():
        model(inputs)


def train_step(model: nn.Module, inputs: Tensor) -> None:
    """Forward and backward, without the optimizer."""
    model(inputs).sum().backward()


def images_per_second(step: Callable[[nn.Module, Tensor], None], model: nn.Module, inputs: Tensor) -> float:
    """Of one turn."""
    started = time.perf_counter()
    for _ in range(PASSES):
        step(model, inputs)
    return PASSES * len(inputs) / (time.perf_counter() - started)


def compare(step: Callable[[nn.Module, Tensor], None], models: tuple[nn.Module, nn.Module], inputs: Tensor) -> float:
    """How many times as fast the second model is."""
    turns = [[images_per_second(step, model, inputs) for model in models] for _ in range(TURNS)]
    plain, laid_out = (max(column) for column in zip(*turns[1:], strict=True))  # the first turn sets up
    return laid_out / plain


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    print("| network | forward | training |\n|---|---|---|")
    for name in NETWORKS:
        plain = ZOO[name][0]().eval()
        laid_out, inputs = copy.deepcopy(plain), torch.randn(BATCH, 3, 32, 32)
        lay_out_(laid_out, inputs)
        gains = [compare(step, (plain, laid_out), inputs) for step in (forward, train_step)]
        print(f"| {name} | {gains[0]:.2f} × | {gains[1]:.2f} × |")
    print(f"\nbatches of {BATCH} images of 32 pixels, one thread, torch {torch.__version__}, {platform.machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

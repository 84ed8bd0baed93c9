"""Seconds per epoch: a block and what follows it on cached features, against the whole network on the same images.

ResNet-18 for 32×32 images, stages as the paper's blocks. Everything runs in one process, in turns, so that the load of
the machine moves all of them and the ratios stay. `training` is the loop every repair uses, for both; so is the cache.
Also the cost of filling the cache, which is paid once, and of streaming, which replaces it when there is no disk.
"""

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from archrepair_core.cut import NoCut, cut_at
from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.features import COMPUTED_AT_ONCE, DiskBudget, Features
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.scope import Scope
from archrepair_core.spec import Preprocessing
from archrepair_core.training import TrainingPlan, train

BLOCKS = ("layer1", "layer2", "layer3", "layer4", "fc")
WHOLE, TRAIN_MODE = "network", "network, batch-norm in train mode"
RATE = 1e-4


def make_network() -> nn.Module:
    """ResNet-18 with the stem of the CIFAR papers: 3×3, no pooling before the first stage."""
    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network.eval()


def make_cache(network: nn.Module, *, images: int, gigabytes: float, work_dir: Path) -> PrefixCache:
    """Random images: what they show costs no time."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (images, 32, 32, 3), np.uint8), rng.integers(0, 10, images)
    data = LabelledImages("repair", ImageRows(pixels, np.arange(images)), labels, "", np.empty(images, "S16"), "random")
    return PrefixCache(
        model=network,
        splits={"repair": data},
        original_logits={"repair": torch.zeros(images, 10)},
        preprocessing=Preprocessing(),
        views={"repair": AUGMENTATIONS["flip_crop"]},
        work_dir=work_dir,
        device=torch.device("cpu"),
        budget=DiskBudget(gigabytes * 1e9),
    )


@dataclass(frozen=True)
class Contender:
    """One way to train; `epoch` trains one and says its seconds, `fill_seconds` are those of filling its cache."""

    name: str
    epoch: Callable[[], float]
    fill_seconds: float


def block_contender(network: nn.Module, cache: PrefixCache, name: str, precision: Any) -> Contender:
    """Train `name` by the repair's loop, on features at its cut; the network on those at the input."""
    scope: Scope = ("",) if name == WHOLE else (name,)
    tail: Callable[[Tensor], Tensor] = network
    if name != WHOLE:
        cut = cut_at(network, name, to_tensor(cache.splits["repair"].images[:8], Preprocessing()))
        if isinstance(cut, NoCut):
            sys.exit(f"{name}: {cut.reason}")
        tail = cut.tail
    started = time.perf_counter()
    features = cache.features(INPUT if name == WHOLE else name, "repair")
    for view in range(features.num_views_N.max()):
        for items in np.array_split(np.arange(len(features)), math.ceil(len(features) / COMPUTED_AT_ONCE)):
            features.batch(np.full_like(items, view), items, torch.device("cpu"))
    fill_seconds = time.perf_counter() - started
    plan = TrainingPlan(epochs=1, deadline=math.inf, seed=0, learning_rate=RATE, precision=precision)
    return Contender(name, lambda: train(network, tail, features, scope=scope, plan=plan).seconds, fill_seconds)


def train_mode_contender(network: nn.Module, features: Features, batch_size: int) -> Contender:
    """What a fine-tune written by hand does: the textbook loop, statistics of the batch."""

    def epoch() -> float:
        started = time.perf_counter()
        optimizer = torch.optim.SGD(network.requires_grad_().parameters(), RATE, momentum=0.9)
        network.train()
        for inputs in features.plain(batch_size, torch.device("cpu")):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), torch.zeros(len(inputs), dtype=torch.long)).backward()
            optimizer.step()
        network.eval()
        return time.perf_counter() - started

    return Contender(TRAIN_MODE, epoch, 0.0)


def measure(contenders: list[Contender], repeats: int) -> dict[str, list[float]]:
    """Seconds of every epoch, in turns."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            seconds[contender.name].append(contender.epoch())
            sys.stderr.write(f"{contender.name}: {seconds[contender.name][-1]:.2f} s\n")
    return seconds


def make_table(rows: list[dict[str, Any]]) -> str:
    """One row per contender: median seconds, and the median over turns of the whole network's seconds over its own."""
    lines = ["| trained | s per epoch | faster than the network | filling the cache, s |", "|---|---|---|---|"]
    lines += [f"| {r['name']} | {r['seconds']:.2f} | {r['ratio']:.2f}× | {r['fill_seconds']:.1f} |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure, write the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="disk for features; 0 streams them")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "block_speed.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    network = make_network()
    with tempfile.TemporaryDirectory() as scratch:
        cache = make_cache(network, images=options.images, gigabytes=options.gigabytes, work_dir=Path(scratch))
        names = (WHOLE, *BLOCKS)
        # Each network is trained on its own copy; the cache's must not change.
        copies = {name: copy.deepcopy(network) for name in names}
        contenders = [block_contender(copies[name], cache, name, options.precision) for name in names]
        contenders.append(train_mode_contender(copy.deepcopy(network), cache.features(INPUT, "repair"), 64))
        seconds = measure(contenders, options.repeats)
    whole = seconds[WHOLE]
    rows = [
        {
            "name": contender.name,
            "seconds": statistics.median(seconds[contender.name]),
            "ratio": statistics.median(w / s for w, s in zip(whole, seconds[contender.name], strict=True)),
            "fill_seconds": contender.fill_seconds,
            "all_seconds": seconds[contender.name],
        }
        for contender in contenders
    ]
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.processor()}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"rows": rows, **facts, **vars(options), "out": str(options.out)}, indent=1))
    print(make_table(rows))


if __name__ == "__main__":
    main()

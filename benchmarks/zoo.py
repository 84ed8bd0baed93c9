"""Small real networks for the benchmarks, trained here on CIFAR-10 or Fashion-MNIST: good ones, and two with faults.

Every recipe is data; `python -m benchmarks.zoo NAME ...` trains what is missing and writes, under benchmarks/out/zoo,
NAME.pt (TorchScript), NAME.weights.pt (state dict of `build`) and NAME.json (recipe and accuracy). CIFAR images are
the JPEG ones, so that the JPEG test set is the everyday of these networks and not a fault. The paper's networks, which
need a GPU, are trained where they are named or a case has them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, ResNet

from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.precision import autocast, bfloat16_gain, resolve_precision
from archrepair_core.spec import Preprocessing
from benchmarks import fashion
from benchmarks.cifar import NUM_CLASSES, PREPROCESSING, load_cifar
from benchmarks.faults import Confusion, confuse
from benchmarks.paper_networks import PAPER_NETWORKS
from benchmarks.tiny_imagenet import NUM_CLASSES as NUM_TINY_CLASSES
from benchmarks.tiny_imagenet import load_tiny_imagenet

OUT = Path("benchmarks/out/zoo")
BATCH_SIZE = 128


@dataclass(frozen=True)
class Source:
    """Labelled images of the splits `train` and `test`, and how they become a network's input."""

    load: Callable[[str], tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]
    preprocessing: Mapping[str, Any]


SOURCES = {
    "cifar": Source(load_cifar, PREPROCESSING),
    "fashion": Source(fashion.load_fashion, fashion.PREPROCESSING),
    "tiny-imagenet": Source(load_tiny_imagenet, PREPROCESSING),
}


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: the first `images` of a source's training set, one-cycle to `lr`.

    `augment` flips and shifts by up to `crop` pixels. With a `confusion`, some labels are wrong.
    """

    images: int
    epochs: int
    lr: float
    optimizer: str = "sgd"
    augment: bool = True
    crop: int = 4
    weight_decay: float = 5e-4
    data: str = "cifar"
    confusion: Confusion | None = None


def to_input(images: npt.NDArray[np.uint8], preprocessing: Mapping[str, Any] = PREPROCESSING) -> Tensor:
    """Images N×H×W×C, or N×H×W grey, as the service gives them to a network: float32 N×C×H×W."""
    images_NHWC = images[..., None] if images.ndim == 3 else images
    return to_tensor(images_NHWC, Preprocessing.model_validate(dict(preprocessing)))


class NarrowResNet(ResNet):
    """Torchvision's ResNet at a width of its own, with a stem for 32-pixel images that halves them once."""

    def __init__(self, width: int, layers: Sequence[int], *, channels: int = 3) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=NUM_CLASSES)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1, self.maxpool = nn.BatchNorm2d(width), nn.Identity()
        self.inplanes = width
        for place in range(4):
            stage: nn.Module = nn.Identity()
            if place < len(layers):
                stage = self._make_layer(BasicBlock, width * 2**place, layers[place], stride=1 if place == 0 else 2)
            setattr(self, f"layer{place + 1}", stage)
        self.fc = nn.Linear(self.inplanes, NUM_CLASSES)


def _mobilenet() -> nn.Module:
    network = models.mobilenet_v3_small(num_classes=NUM_CLASSES)
    network.features[0][0].stride = (1, 1)
    return network


def _densenet() -> nn.Module:
    network = models.DenseNet(12, (6, 6, 6), 24, num_classes=NUM_CLASSES)
    network.features.conv0 = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
    network.features.pool0 = nn.Identity()
    return network


def _vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=NUM_CLASSES
    )


def _convnext() -> nn.Module:
    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)]
    network = ConvNeXt(stages, layer_scale=1.0, num_classes=NUM_CLASSES)
    network.features[0][0] = nn.Conv2d(3, 32, 2, stride=2)
    return network


def _fashion_resnet() -> nn.Module:
    return NarrowResNet(16, (1, 1, 1), channels=1)


# Clothes are centred and fill the picture: shifted by 4 pixels, as CIFAR is, six epochs only reach 85 %.
FASHION = Recipe(fashion.NUM_LEARNED, 6, 0.1, crop=0, data="fashion")
ZOO: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
    "resnet8-overfitted": (lambda: NarrowResNet(32, (1, 1, 1)), Recipe(10_000, 30, 0.1, augment=False, weight_decay=0)),
    "resnet18": (lambda: NarrowResNet(32, (2, 2, 2, 2)), Recipe(45_000, 5, 0.1)),
    "mobilenetv3": (_mobilenet, Recipe(45_000, 6, 0.1)),
    "densenet": (_densenet, Recipe(45_000, 4, 0.2)),
    "convnext": (_convnext, Recipe(45_000, 6, 2e-3, optimizer="adamw", weight_decay=0.05)),
    "vit": (_vit, Recipe(45_000, 5, 2e-3, optimizer="adamw", weight_decay=0.05)),
    "fashion": (_fashion_resnet, FASHION),
    "fashion-confused": (_fashion_resnet, replace(FASHION, confusion=Confusion(fashion.SHIRT, fashion.TSHIRT, 0.6))),
}


def paper_name(network: str, data: str) -> str:
    """What the zoo calls a network of the paper that learned from `cifar` or `tiny-imagenet`."""
    return f"{network.lower()}-{data}"


SMALL = tuple(ZOO)
ZOO |= {
    paper_name(network, data): (partial(build, num_classes), Recipe(images, 60, 0.1, data=data))
    for network, build in PAPER_NETWORKS.items()
    for data, num_classes, images in (("cifar", NUM_CLASSES, 45_000), ("tiny-imagenet", NUM_TINY_CLASSES, 100_000))
}


def trained(name: str) -> Path:
    """A network of the zoo as TorchScript, trained now if it never was by the recipe of today."""
    if not _is_current(name):
        sys.stderr.write(f"training {name}\n")
        train_network(name)
    return OUT / f"{name}.pt"


def _is_current(name: str) -> bool:
    path = OUT / f"{name}.json"
    # What the recipe of an older file does not say had the value that is now the default.
    return path.is_file() and asdict(Recipe(**json.loads(path.read_text())["recipe"])) == asdict(ZOO[name][1])


def load_network(name: str) -> nn.Module:
    """A network of the zoo as eager modules, in eval mode; trained as `trained` does."""
    trained(name)
    network = ZOO[name][0]()
    network.load_state_dict(torch.load(OUT / f"{name}.weights.pt", weights_only=True))
    return network.eval()


def train_network(name: str) -> None:
    """Train one network and write its three files; `test_accuracy` is over all 10,000 test images."""
    torch.manual_seed(0)
    build, recipe = ZOO[name]
    source = SOURCES[recipe.data]
    images, labels = (part[: recipe.images] for part in source.load("train"))
    told = labels if recipe.confusion is None else confuse(labels, recipe.confusion)
    network, started = build(), time.monotonic()
    fit_(network, images, torch.from_numpy(told), recipe, source.preprocessing)
    facts = {
        "network": name,
        "recipe": asdict(recipe),
        "train_accuracy": accuracy_of(network.eval(), images[:10_000], labels[:10_000], source.preprocessing),
        "test_accuracy": accuracy_of(network, *source.load("test"), source.preprocessing),
        "seconds": round(time.monotonic() - started, 1),
        "torch": torch.__version__,
    }
    network = network.cpu()
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), OUT / f"{name}.weights.pt")
    torch.jit.trace(network, to_input(images[:2], source.preprocessing)).save(str(OUT / f"{name}.pt"))
    (OUT / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def accuracy_of(
    network: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    preprocessing: Mapping[str, Any] = PREPROCESSING,
) -> float:
    """Share of images answered rightly, 0–1."""
    return float(right_answers(network, images, labels, preprocessing).mean())


def right_answers(
    network: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    preprocessing: Mapping[str, Any] = PREPROCESSING,
) -> npt.NDArray[np.bool_]:
    """Which images are answered rightly, computed where the network is."""
    weights = next(network.parameters(), None)
    device = torch.device("cpu") if weights is None else weights.device
    with torch.inference_mode():
        batches = (to_input(images[start : start + 500], preprocessing) for start in range(0, len(images), 500))
        answers = [network(batch.to(device)).argmax(1).cpu() for batch in batches]
    right: npt.NDArray[np.bool_] = torch.cat(answers).numpy() == labels
    return right


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit_(
    network: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: Tensor,
    recipe: Recipe,
    preprocessing: Mapping[str, Any],
) -> None:
    """Train by the recipe, on a GPU if there is one. Images become floats a batch at a time: all at once are four times
    as large."""
    device = _device()
    network.to(device)
    steps = recipe.epochs * (len(images) // BATCH_SIZE)
    make = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.SGD
    extra = {} if recipe.optimizer == "adamw" else {"momentum": 0.9, "nesterov": True}
    optimizer = make(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, **extra)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.25)
    precision = resolve_precision(bfloat16_gain(network, to_input(images[:BATCH_SIZE], preprocessing).to(device)))
    network.train()
    for epoch in range(recipe.epochs):
        order, total = torch.randperm(len(images)), 0.0
        for rows in order.split(BATCH_SIZE)[: len(images) // BATCH_SIZE]:
            batch = to_input(images[rows.numpy()], preprocessing).to(device)
            if recipe.augment:
                batch = _augmented(batch, recipe.crop)
            with autocast(device, precision):
                loss = nn.functional.cross_entropy(network(batch).float(), labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        sys.stderr.write(f"epoch {epoch + 1} of {recipe.epochs}: loss {total * recipe.epochs / steps:.3f}\n")


def _augmented(batch: Tensor, crop: int) -> Tensor:
    """One flip and one crop offset per batch: a shuffle of the set gives every image its own over the epochs."""
    if torch.rand(()) < 0.5:
        batch = batch.flip(3)
    top, left = torch.randint(2 * crop + 1, (2,)).tolist()
    height, width = batch.shape[2:]
    return nn.functional.pad(batch, (crop,) * 4)[:, :, top : top + height, left : left + width]


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*ZOO, []], help="which to train (the small ones)")
    for name in parser.parse_args(argv).networks or SMALL:
        trained(name)
    print(make_table())
    return 0


def make_table() -> str:
    """One Markdown row per trained network."""
    lines = ["| network | images × epochs | train % | test % | seconds |", "|---|---|---|---|---|"]
    for path in (OUT / f"{name}.json" for name in ZOO):
        if path.is_file():
            facts = json.loads(path.read_text())
            recipe = cast(dict[str, int], facts["recipe"])
            lines.append(
                f"| {facts['network']} | {recipe['images']} × {recipe['epochs']} | {100 * facts['train_accuracy']:.1f} "
                f"| {100 * facts['test_accuracy']:.1f} | {facts['seconds']:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

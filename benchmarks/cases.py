"""The faults to repair: a network, what is wrong with it or with what it is shown, and a draw of data per seed.

Sets are drawn without looking at the model's errors (`honest`); `of_failures` turns a draw into the paper's protocol.
CIFAR images that any default was developed on (`benchmarks.cifar`) are in no draw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from archrepair_core.data.corruptions import at_severity
from archrepair_core.spec import COMMON_CORRUPTIONS
from benchmarks.cifar import PREPROCESSING, find_data, load_cifar, order_of_test_images
from benchmarks.faults import damage_
from benchmarks.zoo import OUT as ZOO_OUT
from benchmarks.zoo import load_network

NUM_REPAIR, NUM_TEST, NUM_REPLAY = 1000, 5000, 4000
# Failures that the paper's protocol collects (Qi et al. 2023, §4.1), or half of those there are.
NUM_FAILURES = 1000
SEVERITY = 3
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Sets = dict[str, tuple[Images, Labels]]
FaultKind = Literal["shift", "overfitting", "weights", "classes", "none"]


@dataclass(frozen=True)
class Case:
    """A faulty model and its data: sets by role from a seed, and the seconds that every method gets on one thread."""

    what: str
    fault: FaultKind
    network: str
    model: Callable[[Path], Path]
    draw: Callable[[int], Sets]
    seconds: float
    preprocessing: Mapping[str, Any] = field(default_factory=lambda: PREPROCESSING)


def of_failures(sets: Sets, right: npt.NDArray[np.bool_], *, seed: int) -> Sets:
    """The paper's protocol (§4.1): failures of the model, taken out of the test set, are the repair set.

    `right` says of every input of `sets["repair"]`, then of `sets["test"]`, whether the model answers it rightly. What
    is left of them is the test set, so that the original's accuracy on it is flattered: compare rows, not protocols.
    """
    images, labels = (np.concatenate(parts) for parts in zip(sets["repair"], sets["test"], strict=True))
    failures = np.random.default_rng(seed).permutation(np.flatnonzero(~right))
    taken = failures[: min(NUM_FAILURES, len(failures) // 2)]
    left = np.setdiff1d(np.arange(len(labels)), taken)
    return sets | {"repair": (images[taken], labels[taken]), "test": (images[left], labels[left])}


def _cifar_sets(seed: int, *, known: int, change: Callable[[Images, Sequence[int]], Images] | None = None) -> Sets:
    """Disjoint repair and test images through `change`; the first `known` training images to replay and to keep."""
    images, labels = load_cifar("test")
    rows = order_of_test_images(seed)
    sets = {}
    for role, chosen in (("repair", rows[:NUM_REPAIR]), ("test", rows[NUM_REPAIR : NUM_REPAIR + NUM_TEST])):
        pixels = images[chosen] if change is None else change(images[chosen], [int(row) for row in chosen])
        sets[role] = (pixels, labels[chosen])
    train_images, train_labels = load_cifar("train")
    return _with_known(sets, (train_images[:known], train_labels[:known]))


def _with_known(sets: Sets, known: tuple[Images, Labels]) -> Sets:
    return sets | {"replay": known, "regression": known}


def _lossless_known(seed: int) -> Sets:
    return _with_known(_cifar_sets(seed, known=0), load_cifar("lossless-train4k"))


def _zoo_model(name: str) -> Callable[[Path], Path]:
    return lambda _scratch: ZOO_OUT / f"{name}.pt"


def _damaged_model(name: str, block: str, kind: str) -> Callable[[Path], Path]:
    def make(scratch: Path) -> Path:
        network = damage_(load_network(name), block, kind, seed=0)
        torch.jit.trace(network, torch.zeros(2, 3, 32, 32)).save(str(scratch / "damaged.pt"))
        return scratch / "damaged.pt"

    return make


def _corrupted(kind: str) -> Case:
    return Case(
        f"ResNet-18 of the zoo, served {kind.replace('_', ' ')} of severity {SEVERITY}",
        "shift",
        "ResNet-18",
        _zoo_model("resnet18"),
        partial(_cifar_sets, known=NUM_REPLAY, change=at_severity(kind, SEVERITY, 32)),
        seconds=60,
    )


CASES: dict[str, Case] = {
    "jpeg": Case(
        "ResNet-20 trained on lossless images, served JPEG; the 4,000 lossless images are replay and regression set",
        "shift",
        "ResNet-20",
        lambda _scratch: find_data() / "resnet20-cifar10.torchscript.pt",
        _lossless_known,
        seconds=120,
    ),
    "overfitted": Case(
        "ResNet-8 overfitted to 10,000 images, which are replay and regression set",
        "overfitting",
        "ResNet-8",
        _zoo_model("resnet8-overfitted"),
        partial(_cifar_sets, known=10_000),
        seconds=120,
    ),
    "damaged": Case(
        "MobileNetV3 of the zoo with zeroed filters in one block",
        "weights",
        "MobileNetV3",
        _damaged_model("mobilenetv3", "features.6", "zeroed"),
        partial(_cifar_sets, known=NUM_REPLAY),
        seconds=120,
    ),
    "own": Case(
        "ResNet-18 of the zoo on images like those it was trained on: no fault but its errors",
        "none",
        "ResNet-18",
        _zoo_model("resnet18"),
        partial(_cifar_sets, known=NUM_REPLAY),
        seconds=120,
    ),
    **{kind: _corrupted(kind) for kind in COMMON_CORRUPTIONS},
}

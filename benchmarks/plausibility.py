"""How often honest data is suspected of being fed wrongly, and how often wrongly fed data is: on small networks.

The thresholds of `archrepair_core/plausibility.py` were set on ResNet-20. Here are other networks, which learned
scikit-learn's digits, each with one of five ways to feed pixels, and the rest of the digits: as they are and through
the common corruptions (honest: the model is bad, the data is not), fed in another way, or with classes in another
order. An alarm is a warning or the end of the job.

    python -m benchmarks.plausibility --networks 20
"""

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from archrepair_core.data.corruptions import COMMON_KINDS, SEVERITIES, at_severity
from archrepair_core.data.images import DIGEST_DTYPE, labelled_images
from archrepair_core.data.preprocessing import resolve_preprocessing, to_tensor
from archrepair_core.errors import DatasetError
from archrepair_core.evaluate import predict
from archrepair_core.plausibility import question_data
from archrepair_core.spec import Preprocessing, RepairSpec

EDGE, TRAIN, EPOCHS = 16, 900, 12
FED: dict[str, dict[str, Any]] = {
    "0 to 1": {},
    "0 to 255": {"scale": "0-255"},
    "-1 to 1": {"mean": [0.5], "std": [0.5]},
    "MNIST's mean and std": {"mean": [0.1307], "std": [0.3081]},
    "ImageNet's mean and std": {"mean": [0.449], "std": [0.226]},
}
ALARMS = ("silent", "warning", "job ended")


def make_network(*, batch_norm: bool) -> nn.Module:
    """A plain convolutional network for 16-pixel grey images."""
    norms = [nn.BatchNorm2d(width) if batch_norm else nn.Identity() for width in (16, 32)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), norms[1], nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (EDGE // 4) ** 2, 10),
    )  # fmt: skip


def train(network: nn.Module, x_NCHW: torch.Tensor, labels_N: torch.Tensor) -> nn.Module:
    """Until the training digits are learned."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels_N)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(network(x_NCHW[rows]), labels_N[rows]).backward()
            optimizer.step()
    return network.eval()


def alarm(network: nn.Module, pixels: np.ndarray, labels: np.ndarray, fed: dict[str, Any]) -> str:
    """What a job would say of these images as its test set."""
    images = labelled_images(pixels, labels, np.zeros(len(labels), DIGEST_DTYPE), name="test", source="test")
    spec = RepairSpec.model_validate(
        {"datasets": {"repair": "upload:x", "test": "upload:x"}, "preprocessing": fed}
    )  # fmt: skip
    preprocessing = resolve_preprocessing(spec.preprocessing, images)
    logits = predict(network, images, preprocessing, batch_size=128, device="cpu")
    try:
        doubts = question_data(network, {"test": images}, preprocessing, {"test": logits}, spec)
    except DatasetError:
        return "job ended"
    return "warning" if doubts else "silent"


def cases(
    pixels: np.ndarray, labels: np.ndarray, own: str, seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, str]]:
    """What is fed: name of the case, images, labels, and how."""
    yield "honest: as they are", pixels, labels, own
    for place, kind in enumerate(COMMON_KINDS):
        severity = SEVERITIES[(place + seed) % len(SEVERITIES)]
        corrupted = at_severity(kind, severity, EDGE)(pixels, range(seed * 10_000, seed * 10_000 + len(pixels)))
        yield "honest: corrupted", corrupted, labels, own
    for other in FED:
        if other != own:
            yield "fed in another way", pixels, labels, other
    yield "classes in another order", pixels, np.random.default_rng(seed).permutation(10)[labels], own


def main(argv: Sequence[str] | None = None) -> int:
    """Print how often each case raised which alarm."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--networks", type=int, default=20)
    options = parser.parse_args(argv)
    digits = load_digits()
    whole = np.rint(digits.images * (255 / 16)).astype(np.uint8).repeat(2, 1).repeat(2, 2)[..., np.newaxis]
    counts: dict[str, Counter[str]] = {}
    accuracies = []
    for seed in range(options.networks):
        torch.manual_seed(seed)
        order = np.random.default_rng(seed).permutation(len(whole))
        learned, rest = order[:TRAIN], order[TRAIN:]
        own = list(FED)[seed % len(FED)]
        asked = Preprocessing.model_validate({"scale": "0-1", **FED[own]})
        x_NCHW = to_tensor(whole[learned], asked)
        network = train(make_network(batch_norm=seed % 2 == 0), x_NCHW, torch.as_tensor(digits.target[learned]))
        with torch.inference_mode():
            right = network(to_tensor(whole[rest], asked)).argmax(1).numpy() == digits.target[rest]
        accuracies.append(float(right.mean()))
        for case, pixels, labels, fed in cases(whole[rest], digits.target[rest], own, seed):
            counts.setdefault(case, Counter())[alarm(network, pixels, labels, FED[fed])] += 1
    rows = [
        f"| {case} | {found.total()} | " + " | ".join(str(found[said]) for said in ALARMS) + " |"
        for case, found in counts.items()
    ]
    head = f"| case | n | {' | '.join(ALARMS)} |"
    sys.stdout.write("\n".join([head, "|---|---|---|---|---|", *rows]) + "\n\n")
    sys.stdout.write(
        f"{options.networks} networks, accuracy {min(accuracies):.3f} to {max(accuracies):.3f} on {len(whole) - TRAIN} "
        f"digits; torch {torch.__version__}, {platform.machine()}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m archrepair_core.demo.digits DIR`: teach a small network sharp digits, and blur others.

Real handwriting (scikit-learn's digits, 1,797 images of 8×8), split once into disjoint parts: the network learns from
`train`, and fails on the blurred pictures of the others. Leaves model.pt, repair.npz, validation.npz and test.npz.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from archrepair_core.determinism import fix_seeds

PARTS = {"train": 700, "repair": 450, "validation": 150, "test": 497}
BLUR_SIGMA = 0.9  # pixels
NOISE_SD = 12.0  # grey levels of 255
EPOCHS = 40
CHANNELS = 16

Bytes = npt.NDArray[np.uint8]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class DigitsNet(nn.Module):
    """A stem, three residual blocks and a linear head: [N, 1, 8, 8] in 0–1 to [N, 10] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(CHANNELS) for _ in range(3)))
        self.head = nn.Linear(CHANNELS * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(F.max_pool2d(self.blocks(self.stem(x)), 2).flatten(1))


def photograph(images_NHW: Bytes, rng: np.random.Generator) -> Bytes:
    """The same images through an out-of-focus lens on a noisy sensor."""
    blurred = gaussian_filter(images_NHW.astype(np.float32), sigma=(0, BLUR_SIGMA, BLUR_SIGMA))
    noisy = blurred + rng.normal(0, NOISE_SD, blurred.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def train_network(images_NHW: Bytes, labels_N: npt.NDArray[np.int64]) -> DigitsNet:
    """Train on sharp images until they are learned."""
    model = DigitsNet().train()
    x_NCHW = torch.from_numpy(images_NHW).float().unsqueeze(1) / 255
    labels = torch.from_numpy(labels_N)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x_NCHW[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def make_case(directory: Path, *, seed: int) -> None:
    """Write the model and the disjoint sets of blurred images."""
    fix_seeds(seed)
    rng = np.random.default_rng(seed)
    images_NHW, labels_N = load_digits().images, load_digits().target.astype(np.int64)
    images_NHW = (images_NHW * 255 / 16).round().astype(np.uint8)
    order, bounds = rng.permutation(len(labels_N)), np.cumsum(list(PARTS.values()))
    rows = dict(zip(PARTS, np.split(order, bounds[:-1]), strict=True))
    model = train_network(images_NHW[rows["train"]], labels_N[rows["train"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript, which customers still send
        torch.jit.script(model).save(str(directory / "model.pt"))
    for part in ("repair", "validation", "test"):
        blurred = photograph(images_NHW[rows[part]], rng)
        np.savez_compressed(directory / f"{part}.npz", images=blurred, labels=labels_N[rows[part]])


def main(argv: Sequence[str] | None = None) -> int:
    """Make the case in a directory."""
    parser = argparse.ArgumentParser(prog="python -m archrepair_core.demo.digits", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.directory.mkdir(parents=True, exist_ok=True)
    make_case(options.directory, seed=options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make_case.py DIR`: a small scripted CNN trained on handwritten digits, and such digits as a noisy sensor sees them.

A process of its own, so that the tests never fork after torch has computed.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


class DigitNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.block1 = Residual(12)
        self.block2 = Residual(12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.block1(torch.relu(self.stem(x))))
        return self.head(x.mean([2, 3]))


def main(directory: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    model = train(images[:900], digits.target[:900])
    torch.jit.script(model.eval()).save(str(directory / "model.pt"))
    seen = noisy(images[900:], np.random.default_rng(0))
    labels = digits.target[900:].astype(np.int64)
    np.savez(directory / "repair.npz", images=seen[:450], labels=labels[:450])
    np.savez(directory / "test.npz", images=seen[450:], labels=labels[450:])


def train(images: np.ndarray, labels: np.ndarray) -> nn.Module:
    x, y = torch.tensor(images)[:, None].float() / 255, torch.tensor(labels)
    model = DigitNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Low contrast and noise, as a cheap sensor in bad light."""
    faint = 40 + 0.45 * images + rng.normal(0, 18, images.shape)
    return np.clip(faint, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

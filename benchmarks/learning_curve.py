"""What more images like those it learned from are worth to a network: how much a repair without a fault can gain.

The zoo's network for Fashion-MNIST trained anew on half, all and twice its images, three times, as many steps each,
measured on the test images nothing was developed on; a power law through the errors says what as many images as a
repair set has would add (Hestness et al., "Deep Learning Scaling is Predictable, Empirically", 2017).
`python -m benchmarks.learning_curve`
"""

import sys
from dataclasses import replace

import numpy as np
import torch

from benchmarks import fashion
from benchmarks.cases import NUM_REPAIR
from benchmarks.zoo import FASHION, ZOO, fit_, right_answers

COUNTS = (15_000, 30_000, 60_000)
TRAINING_SEEDS = range(3)
SEED = 23


def errors_after(count: int, seed: int) -> float:
    """Share of the test images that the network, trained on the first `count` training images, answers wrongly."""
    torch.manual_seed(seed)
    network, recipe = ZOO["fashion"][0](), replace(FASHION, images=count, epochs=FASHION.epochs * COUNTS[1] // count)
    images, labels = fashion.load_fashion("train")
    fit_(network, images[:count], torch.from_numpy(labels[:count]), recipe, fashion.PREPROCESSING)
    rows = fashion.test_rows(SEED)
    images, labels = fashion.load_fashion("test")
    return 1 - float(right_answers(network.eval().cpu(), images[rows], labels[rows], fashion.PREPROCESSING).mean())


def main() -> int:
    """Print the errors, their law, and what a repair set is worth by it."""
    errors_CS = np.array([[errors_after(count, seed) for seed in TRAINING_SEEDS] for count in COUNTS])
    for count, errors_S in zip(COUNTS, 100 * errors_CS, strict=True):
        print(f"{count:,} images: {errors_S.mean():.2f} ({errors_S.min():.2f}–{errors_S.max():.2f}) % wrong")
    slope, offset = np.polyfit(np.log(COUNTS), np.log(errors_CS.mean(1)), 1)
    now, then = (np.exp(offset) * count**slope for count in (COUNTS[1], COUNTS[1] + NUM_REPAIR))
    print(f"error ~ images^{slope:.3f}: {NUM_REPAIR:,} images more are worth {100 * (now - then):.2f} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())

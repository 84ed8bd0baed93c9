"""The fifteen common corruptions against another implementation of them, `imagecorruptions-imaug`: what they do to the
same photographs, and how long they take.

That package pins an OpenCV of its own, so it runs in a virtual environment of its own, as another process:

    python -m venv REFERENCE && REFERENCE/bin/pip install imagecorruptions-imaug
    python -m benchmarks.corruptions --reference REFERENCE/bin/python

Pictures are crops of the two photographs that scikit-learn brings along, 224 pixels wide: the severities of ImageNet-C
are for these. What is not drawn at random is compared pixel by pixel; of the rest the mean and the spread of what is
added are compared, for no two implementations draw alike. Seconds are of 32-pixel images and of the processor, one
thread each; the reference is called image by image, which is the only way it can be.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from archrepair_core.data.corruptions import COMMON_KINDS, SEVERITIES, at_severity
from archrepair_core.robustness import MAX_BATCH

LARGE, SMALL = 224, 32
COMPARED = 24
# What has nothing random in it.
FIXED = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
# Run by the other Python: all kinds and severities over images from a file, with the seconds of each kind.
REFERENCE = """
import sys, time
from importlib.metadata import version
import numpy as np
import cv2
from imagecorruptions import corrupt
cv2.setNumThreads(1)
images, kinds, severities = np.load(sys.argv[1])["images"], sys.argv[3].split(), range(1, 6)
found, seconds = {}, {}
for kind in kinds:
    corrupt(images[0], severity=1, corruption_name=kind)  # what is compiled or read once
    started = time.process_time()
    for severity in severities:
        np.random.seed(severity)
        found[f"{kind}_{severity}"] = np.stack([corrupt(i, severity=severity, corruption_name=kind) for i in images])
    seconds[kind] = time.process_time() - started
found["seconds"] = np.array([seconds[kind] for kind in kinds])
found["version"] = np.array(version("imagecorruptions-imaug"))
np.savez(sys.argv[2], **found)
"""


def photographs(count: int, edge: int, *, seed: int = 0) -> np.ndarray:
    """Square crops [N, edge, edge, 3]; smaller ones are scaled-down crops of 224 pixels."""
    rng, sources = np.random.default_rng(seed), load_sample_images().images
    crops = []
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (int(rng.integers(0, size - LARGE + 1)) for size in source.shape[:2])
        crop = source[top : top + LARGE, left : left + LARGE]
        step = LARGE // edge
        crops.append(crop.reshape(edge, step, edge, step, 3).mean((1, 3)).round().astype(np.uint8))
    return np.stack(crops)


def reference(python: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the other implementation makes of them, by `kind_severity`; `seconds` by kind."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "images.npz"), Path(folder, "result.npz")
        np.savez(source, images=images)
        command = [str(python), "-W", "ignore", "-c", REFERENCE, str(source), str(result), " ".join(COMMON_KINDS)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        with np.load(result) as arrays:
            return dict(arrays)


def ours(kind: str, severity: int, images: np.ndarray) -> np.ndarray:
    """Corrupted in the batches of an evaluation."""
    corruption = at_severity(kind, severity, images.shape[1])
    parts = [
        corruption(images[start : start + MAX_BATCH], range(start, min(start + MAX_BATCH, len(images))))
        for start in range(0, len(images), MAX_BATCH)
    ]
    return np.concatenate(parts)


def seconds_of(kind: str, images: np.ndarray) -> float:
    """Of all five severities."""
    started = time.process_time()
    for severity in SEVERITIES:
        ours(kind, severity, images)
    return time.process_time() - started


def compare(kind: str, images: np.ndarray, theirs: dict[str, np.ndarray]) -> str:
    """One row: how far the two are from each other, over all severities, in grey levels of 255."""
    added = images.astype(np.float32)
    pairs = [(ours(kind, severity, images).astype(np.float32), theirs[f"{kind}_{severity}"]) for severity in SEVERITIES]
    if kind in FIXED:
        gaps = np.abs(np.stack([mine - other for mine, other in pairs]))
        return (
            f"pixel by pixel | mean {gaps.mean():.2f}, 99 % within {np.quantile(gaps, 0.99):.0f}, most {gaps.max():.0f}"
        )
    means = [abs(float((mine - added).mean() - (other - added).mean())) for mine, other in pairs]
    spreads = [float((mine - added).std() / (other - added).std()) for mine, other in pairs]
    return f"distribution | mean off by at most {max(means):.1f}, spread {min(spreads):.2f} to {max(spreads):.2f} ×"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--reference", type=Path, required=True, help="a Python that has imagecorruptions-imaug")
    parser.add_argument("--images", type=int, default=100, help="32-pixel images that both are timed on")
    parser.add_argument("--suite", type=int, default=1000, help="32-pixel images that the whole suite is timed on")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    large, small, suite = (
        photographs(COMPARED, LARGE),
        photographs(options.images, SMALL),
        photographs(options.suite, SMALL),
    )
    theirs, timed = reference(options.reference, large), reference(options.reference, small)
    for kind in COMMON_KINDS:
        ours(kind, 1, small[:2])  # what is read or compiled once, as for the other
    mine = {kind: seconds_of(kind, small) for kind in COMMON_KINDS}
    whole = sum(seconds_of(kind, suite) for kind in COMMON_KINDS)
    rows = [
        f"| {kind} | {compare(kind, large, theirs)} | {1e6 * mine[kind] / options.images / 5:,.0f} | "
        f"{1e6 * taken / options.images / 5:,.0f} | {taken / mine[kind]:.1f} × |"
        for kind, taken in zip(COMMON_KINDS, timed["seconds"], strict=True)
    ]
    head = "| corruption | compared | difference, of 255 | µs per image | the other, µs | faster |"
    total = float(timed["seconds"].sum()) / sum(mine.values())
    sys.stdout.write("\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n\n")
    sys.stdout.write(
        f"all: {total:.1f} × faster; the suite of 15 × 5 on {options.suite} images of 32 pixels: {whole:.1f} s\n"
        f"imagecorruptions-imaug {timed['version']}, numpy {np.__version__}, torch {torch.__version__}, "
        f"{platform.machine()}, Python {platform.python_version()}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

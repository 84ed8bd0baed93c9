"""The corruptions that move light to neighbouring pixels: defocus, glass, motion, zoom, elastic, Gaussian.

Tables are by severity 1–5: of CIFAR-10-C for small images, of ImageNet-C for larger ones; between two severities their
numbers are interpolated.

Legend: N images, H height, W width, C channels; float32 in 0–1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import oaconvolve
from torch.nn import functional as F

Generators = Sequence[np.random.Generator]
Table = tuple[tuple[float, ...], ...]

SMALL_EDGE = 64
LARGE_EDGE = 224  # the tables of ImageNet-C are for images of this edge
DEFOCUS_SMALL: Table = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
DEFOCUS_LARGE: Table = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
GLASS_SMALL: Table = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
GLASS_LARGE: Table = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
MOTION_SMALL: Table = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
MOTION_LARGE: Table = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
# Shares of the edge: displacement, its smoothness, and how far the corners of the affine part may go.
ELASTIC_SMALL: Table = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
ELASTIC_LARGE: Table = ((0.0625, 0.01, 0), (0.08125, 0.01, 0), (0.10625, 0.01, 0), (0.125, 0.01, 0), (0.15, 0.01, 0))
ZOOM_STEP = 0.01


def by_severity(severity: float, tables: tuple[Table, Table], edge: int) -> list[float]:
    """The numbers at a severity that need not be whole, from the table for images of this edge."""
    rows = tables[0] if edge <= SMALL_EDGE else tables[1]
    return [float(np.interp(severity, range(1, len(rows) + 1), column)) for column in zip(*rows, strict=True)]


def pixels(length: float, edge: int) -> float:
    """A length of the table in pixels of images of this edge."""
    return length if edge <= SMALL_EDGE else length * edge / LARGE_EDGE


def edge_of(images_NHWC: np.ndarray) -> int:
    """The shorter edge in pixels."""
    return min(images_NHWC.shape[1:3])


def gaussian(images: np.ndarray, sigma: float, _generators: Generators) -> np.ndarray:
    """Gaussian blur, `sigma` in pixels."""
    return gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")


def defocus(images: np.ndarray, severity: float, _generators: Generators) -> np.ndarray:
    """A disk whose rim is softened."""
    edge = edge_of(images)
    radius, softness = by_severity(severity, (DEFOCUS_SMALL, DEFOCUS_LARGE), edge)
    kernel = _disk(pixels(radius, edge), softness)
    reach = len(kernel) // 2
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return oaconvolve(padded, kernel[None, :, :, None], mode="valid", axes=(1, 2)).astype(np.float32)


def _disk(radius: float, softness: float) -> np.ndarray:
    reach = math.ceil(radius) + 2
    offsets = np.arange(-reach, reach + 1)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    width = 1 if radius <= 8 else 2
    return gaussian_filter(inside / inside.sum(), softness, radius=width)


def glass(images: np.ndarray, severity: float, generators: Generators) -> np.ndarray:
    """Between two Gaussian blurs, pixels take the value of a neighbour.

    The published sets meant to swap them; what they do is this.
    """
    edge = edge_of(images)
    numbers = by_severity(severity, (GLASS_SMALL, GLASS_LARGE), edge)
    sigma, delta, rounds = numbers[0], round(numbers[1]), round(numbers[2])
    shuffled = gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")
    height, width = images.shape[1:3]
    rows, columns = np.arange(delta + 1, height - delta), np.arange(delta + 1, width - delta)
    everyone = np.arange(len(images))[:, None, None]
    for _ in range(rounds):
        moves = np.stack([g.integers(-delta, delta, (2, len(rows), len(columns))) for g in generators])
        inner = shuffled[everyone, rows[:, None] + moves[:, 0], columns + moves[:, 1]]
        shuffled[:, delta + 1 : height - delta, delta + 1 : width - delta] = inner
    return gaussian_filter(shuffled, (0, sigma, sigma, 0), mode="nearest")


def motion(images: np.ndarray, severity: float, generators: Generators) -> np.ndarray:
    """Smeared along a direction within 45° of the horizontal, fading like half a Gaussian."""
    edge = edge_of(images)
    radius, sigma = (pixels(n, edge) for n in by_severity(severity, (MOTION_SMALL, MOTION_LARGE), edge))
    angles = [float(generator.uniform(-45, 45)) for generator in generators]
    return smear(images, radius, sigma, angles)


def smear(images: np.ndarray, radius: float, sigma: float, angles: Sequence[float]) -> np.ndarray:
    """One-sided motion blur of each image along its angle in degrees; what lies outside repeats the border."""
    taps = np.arange(2 * round(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2)).astype(np.float32)
    weights /= weights.sum()
    taps = taps[weights > 1e-3]
    height, width = images.shape[1:3]
    reach = int(taps[-1])
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    blurred = np.zeros_like(images)
    for image, target, angle in zip(padded, blurred, np.deg2rad(angles), strict=True):
        for tap in taps:
            top, left = reach + round(tap * math.sin(angle)), reach + round(tap * math.cos(angle))
            target += weights[tap] * image[top : top + height, left : left + width]
    return blurred / weights[: len(taps)].sum()


def zoom(images: np.ndarray, largest: float, _generators: Generators) -> np.ndarray:
    """The mean of the image and its enlargements up to `largest`, centred."""
    step = ZOOM_STEP if edge_of(images) <= SMALL_EDGE else 2 * ZOOM_STEP
    factors = np.arange(1, largest + step / 2, step)
    total = images.copy()
    for factor in factors:
        total += _enlarged(_enlarged(images, 1, factor), 2, factor)
    return total / (len(factors) + 1)


def _enlarged(images: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """Stretched along an axis about its centre, by linear interpolation."""
    length = images.shape[axis]
    centre = (length - 1) / 2
    places = centre + (np.arange(length) - centre) / factor
    before = np.minimum(places.astype(int), length - 2)
    shape = [-1 if i == axis else 1 for i in range(images.ndim)]
    share = (places - before).astype(np.float32).reshape(shape)
    return np.take(images, before, axis) * (1 - share) + np.take(images, before + 1, axis) * share


def elastic(images: np.ndarray, severity: float, generators: Generators) -> np.ndarray:
    """An affine jolt and smooth random displacements, sampled in one go."""
    height, width = images.shape[1:3]
    edge = min(height, width)
    strength, smoothness, jolt = (share * edge for share in by_severity(severity, (ELASTIC_SMALL, ELASTIC_LARGE), edge))
    # ImageNet-C draws its displacements within half a percent of the edge, and then multiplies by up to 30 pixels.
    noise = np.stack([generator.uniform(-1, 1, (2, height, width)) for generator in generators])
    shifts = strength * gaussian_filter(noise, (0, 0, smoothness, smoothness), mode="reflect", truncate=3)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    y_N, x_N = _jolted(y, x, edge, jolt, generators)
    grid = np.stack([(x_N + shifts[:, 0]) / (width - 1), (y_N + shifts[:, 1]) / (height - 1)], axis=-1)
    sampled = F.grid_sample(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy((2 * grid - 1).astype(np.float32)),
        align_corners=True,
        padding_mode="reflection",
    )
    return sampled.permute(0, 2, 3, 1).contiguous().numpy()


def _jolted(
    y: np.ndarray, x: np.ndarray, edge: int, jolt: float, generators: Generators
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel comes from when three points of the image move by up to `jolt` pixels; [N, H, W] each."""
    centre, reach = edge // 2, edge // 3
    points = np.array([[1, 1], [1, -1], [-1, -1]]) * reach + centre
    moved = np.stack([points + generator.uniform(-jolt, jolt, points.shape) for generator in generators])
    homogeneous = np.concatenate([moved, np.ones((len(moved), 3, 1))], axis=2)
    affine_N32 = np.linalg.solve(homogeneous, np.broadcast_to(points, moved.shape).astype(float))
    places = np.stack([x, y, np.ones_like(x)], axis=-1) @ affine_N32[:, None]
    return places[..., 1], places[..., 0]

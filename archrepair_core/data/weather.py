"""Snow, frost and fog. Tables are by severity 1–5, as in blurs.py.

Legend: N images, H height, W width, C channels; float32 in 0–1.
"""

import numpy as np
import torch
from torch.nn import functional as F

from archrepair_core.data.blurs import Generators, Table, by_severity, edge_of, pixels, smear

# Strength, and by how much each finer octave of the cloud is weaker.
FOG_SMALL: Table = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
FOG_LARGE: Table = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
# Share of the image, and of the frost on it.
FROST_SMALL: Table = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
FROST_LARGE: Table = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
# Mean and spread of the flakes, their zoom, the threshold, length and fading of the smear, share of the plain image.
SNOW_SMALL: Table = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
SNOW_LARGE: Table = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
ICE_COLOUR = np.array([0.78, 0.88, 1.0], dtype=np.float32)
CRYSTAL_DECAY, CRYSTAL_SHARPNESS = 1.6, 4
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def fog(images: np.ndarray, severity: float, generators: Generators) -> np.ndarray:
    """A plasma cloud is added, and the sum scaled back to where the image was brightest."""
    strength, decay = by_severity(severity, (FOG_SMALL, FOG_LARGE), edge_of(images))
    clouds = plasma(images.shape[1:3], decay, generators)[..., None]
    brightest = images.max((1, 2, 3), keepdims=True)
    return (images + strength * clouds) * brightest / np.maximum(brightest + strength, 1e-6)


def frost(images: np.ndarray, severity: float, generators: Generators) -> np.ndarray:
    """Bright bluish crystals along the ridges of a plasma cloud, over the image."""
    kept, frosted = by_severity(severity, (FROST_SMALL, FROST_LARGE), edge_of(images))
    cloud = plasma(images.shape[1:3], CRYSTAL_DECAY, generators)
    ridges = (1 - np.abs(2 * cloud - 1)) ** CRYSTAL_SHARPNESS
    colour = ICE_COLOUR if images.shape[3] == 3 else ICE_COLOUR.mean(keepdims=True)
    ice = (0.35 * cloud + 0.65 * ridges)[..., None] * colour
    return kept * images + frosted * ice


def snow(images: np.ndarray, severity: float, generators: Generators) -> np.ndarray:
    """Flakes smeared by the wind, falling from both sides, over a paler image."""
    edge = edge_of(images)
    numbers = by_severity(severity, (SNOW_SMALL, SNOW_LARGE), edge)
    mean, spread, enlarged, threshold, length, fading, kept = numbers
    flakes = np.stack([g.normal(mean, spread, images.shape[1:3]) for g in generators]).astype(np.float32)
    flakes = _zoomed(flakes, enlarged)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)[..., None]
    angles = [float(generator.uniform(-135, -45)) for generator in generators]
    flakes = smear(flakes, pixels(length, edge), pixels(fading, edge), angles)
    grey = (images @ GREY)[..., None] if images.shape[3] == 3 else images
    paler = kept * images + (1 - kept) * np.maximum(images, grey * 1.5 + 0.5)
    return paler + flakes + np.rot90(flakes, k=2, axes=(1, 2))


def plasma(shape: tuple[int, int], decay: float, generators: Generators) -> np.ndarray:
    """Clouds [N, H, W] in 0–1 by the diamond-square algorithm; each finer step is `decay` times weaker."""
    size = 1 << (max(shape) - 1).bit_length()
    cloud = np.zeros((len(generators), size, size), dtype=np.float32)
    step, amplitude = size, 1.0
    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        around = corners + np.roll(corners, -1, 1)
        centres = (around + np.roll(around, -1, 2)) / 4
        cells = (3, *centres.shape[1:])
        noise = amplitude * np.stack([g.uniform(-1, 1, cells) for g in generators]).astype(np.float32)
        cloud[:, half::step, half::step] = centres + noise[:, 0]
        middles = cloud[:, half::step, half::step]
        cloud[:, ::step, half::step] = (
            middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 2)
        ) / 4 + noise[:, 1]
        cloud[:, half::step, ::step] = (
            middles + np.roll(middles, 1, 2) + corners + np.roll(corners, -1, 1)
        ) / 4 + noise[:, 2]
        step, amplitude = half, amplitude / decay
    cloud -= cloud.min((1, 2), keepdims=True)
    cloud /= np.maximum(cloud.max((1, 2), keepdims=True), 1e-6)
    return cloud[:, : shape[0], : shape[1]]


def _zoomed(flakes_NHW: np.ndarray, factor: float) -> np.ndarray:
    """The centre enlarged to the same size."""
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]]).expand(len(flakes_NHW), 2, 3)
    values = torch.from_numpy(flakes_NHW)[:, None]
    grid = F.affine_grid(theta, list(values.shape), align_corners=True)
    return F.grid_sample(values, grid, align_corners=True, padding_mode="reflection")[:, 0].numpy()

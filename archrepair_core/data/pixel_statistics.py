"""What a picture looks like, in numbers that a fault of camera, cable or file changes more than the motif does.

About a hundred per image: the spectrum of 8×8 blocks (compression, blur), colour and tone (exposure, weather), how
pixels stand from their neighbours, between channels and by tone (the kinds of noise), and exact coincidences
(impulses, enlarged pixels).

Legend: N images, H height, W width, C channels (1 or 3), values in 0–1, F statistics.
"""

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 8
MIN_EDGE = BLOCK
LEVEL = 1 / 255  # one grey level: less than that is nothing
RARE = 0.01  # shares of pixels well below that are alike
LUMA = (0.299, 0.587, 0.114)
TONES = (0.0, 0.02, 0.1, 0.5, 0.9, 0.98, 1.0)


def look(images_NHWC: Tensor) -> Tensor:
    """Statistics of each image, [N, F]; F is 113 for three channels. Edges are at least `MIN_EDGE` pixels."""
    luma_NHW = images_NHWC @ images_NHWC.new_tensor(LUMA) if images_NHWC.shape[3] == 3 else images_NHWC[..., 0]
    parts = [_spectrum(luma_NHW), _tones(luma_NHW), *_colours(images_NHWC, luma_NHW)]
    parts += [_residuals(images_NHWC, luma_NHW), _differences(luma_NHW), _coincidences(images_NHWC, luma_NHW)]
    return torch.cat(parts, 1)


def _spectrum(luma_NHW: Tensor) -> Tensor:
    """Mean magnitude of the block cosine transform at each frequency but the mean, as JPEG sees it; [N, 63]."""
    down, across = (size // BLOCK for size in luma_NHW.shape[1:])
    cropped = luma_NHW[:, : down * BLOCK, : across * BLOCK]
    blocks = cropped.reshape(-1, down, BLOCK, across, BLOCK).movedim(3, 2).flatten(1, 2)
    cosines = _cosines().to(luma_NHW)
    magnitudes = (cosines @ blocks @ cosines.T).abs().mean(1).flatten(1)
    return _log(magnitudes, LEVEL / 2)[:, 1:]


def _cosines() -> Tensor:
    """The orthonormal DCT-II, [8, 8]."""
    frequencies, places = torch.arange(BLOCK)[:, None], torch.arange(BLOCK)
    matrix = torch.cos(math.pi * (2 * places + 1) * frequencies / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def _tones(luma_NHW: Tensor) -> Tensor:
    values = luma_NHW.flatten(1)
    # NumPy sorts short rows several times faster, and torch.quantile refuses long ones.
    ranked = torch.from_numpy(np.sort(values.numpy(), 1))
    places = [round(tone * (values.shape[1] - 1)) for tone in TONES]
    return torch.cat([values.mean(1, keepdim=True), _log(values.std(1, keepdim=True)), ranked[:, places]], 1)


def _colours(images_NHWC: Tensor, luma_NHW: Tensor) -> list[Tensor]:
    if images_NHWC.shape[3] == 1:
        return []
    saturation = (images_NHWC.amax(3) - images_NHWC.amin(3)).mean((1, 2))
    spreads = [(images_NHWC[..., channel] - luma_NHW).flatten(1).std(1) for channel in (2, 0)]
    return [images_NHWC.mean((1, 2)), torch.stack([saturation, *spreads], 1)]


def _residuals(images_NHWC: Tensor, luma_NHW: Tensor) -> Tensor:
    """How far pixels stand from their neighbours, in each channel; in the dark and in the light; alike or not."""
    channels = list(images_NHWC.unbind(3))
    residuals = [_laplacian(plane) for plane in [luma_NHW, *(channels if len(channels) == 3 else [])]]
    found = []
    for residual in (residual.flatten(1) for residual in residuals):
        mean, rms = residual.abs().mean(1), residual.square().mean(1).sqrt()
        typical = residual.abs().sqrt().mean(1).square()
        found += [_log(mean), _log(rms), _log(typical), (rms + LEVEL) / (mean + LEVEL)]
    inner = luma_NHW[:, 1:-1, 1:-1].flatten(1)
    dark = inner <= inner.mean(1, keepdim=True)
    size = residuals[0].flatten(1).abs()
    found += [_log((size * part).sum(1) / part.sum(1).clamp_min(1)) for part in (dark, ~dark)]
    for i, j in ((1, 2), (1, 3), (2, 3)) if len(residuals) == 4 else ():
        a, b = residuals[i].flatten(1), residuals[j].flatten(1)
        found.append((a * b).mean(1) / (a.square().mean(1) * b.square().mean(1)).sqrt().add(LEVEL**2))
    return torch.stack(found, 1)


def _laplacian(plane_NHW: Tensor) -> Tensor:
    middle = 4 * plane_NHW[:, 1:-1, 1:-1]
    across = plane_NHW[:, 1:-1, :-2] + plane_NHW[:, 1:-1, 2:]
    return middle - across - plane_NHW[:, :-2, 1:-1] - plane_NHW[:, 2:, 1:-1]


def _differences(luma_NHW: Tensor) -> Tensor:
    """Mean differences at one, two and four pixels and along both diagonals: the direction and width of a blur."""
    y = luma_NHW
    pairs = [y[:, 1:, 1:] - y[:, :-1, :-1], y[:, 1:, :-1] - y[:, :-1, 1:]]
    for lag in (1, 2, 4):
        pairs += [y[:, :, lag:] - y[:, :, :-lag], y[:, lag:] - y[:, :-lag]]
    return torch.stack([_log(pair.abs().mean((1, 2))) for pair in pairs], 1)


def _coincidences(images_NHWC: Tensor, luma_NHW: Tensor) -> Tensor:
    """Shares of neighbours that are equal, and of values and pixels that are exactly black or white."""
    equal = [(luma_NHW.diff(dim=dim).abs() < LEVEL / 2).float().mean((1, 2)) for dim in (2, 1)]
    ends = [images_NHWC <= 0, images_NHWC >= 1]
    values = [end.float().mean((1, 2, 3)) for end in ends]
    whole = [end.all(3).float().mean((1, 2)) for end in ends]
    return _log(torch.stack([*equal, *values, *whole], 1), RARE)


def _log(values: Tensor, least: float = LEVEL) -> Tensor:
    return (values + least).log()

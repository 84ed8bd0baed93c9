"""Pixels that come as numbers, whatever they came in: which axis is which, and how they are stored."""

import numpy as np

from archrepair_core.data.images import PixelChunk, sample_digest
from archrepair_core.errors import DatasetError

# Tried in this order: 4 is as often a tiny image's side as it is RGBA.
COMMON_CHANNELS = ((1, 3), (4,))


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """Floats are kept as float32, integers as uint8."""
    return np.dtype(np.float32 if dtype.kind == "f" else np.uint8)


def layout(shape: tuple[int, ...]) -> tuple[bool, tuple[int, int, int, int]]:
    """Whether channels come before height and width, and the shape as N×H×W×C.

    Of four axes the last is C when it is 1 or 3, else the second when it is; then the same with 4; else the smaller of
    the two. Raises DatasetError for other numbers of axes, and where neither is smaller.
    """
    if len(shape) == 3:
        return False, (*shape, 1)
    if len(shape) != 4:
        raise DatasetError(
            "images_shape",
            f"the images have the shape {shape}, not 3 or 4 axes",
            hint="save N×H×W (grey), N×H×W×C or N×C×H×W",
        )
    count, second, third, last = shape
    usual = [channels for group in COMMON_CHANNELS for channels in (last, second) if channels in group]
    if not usual and second == last:
        raise DatasetError(
            "layout_ambiguous",
            f"the images have the shape {shape}: channels could be first or last",
            hint="save N×H×W×C with 1, 3 or 4 channels, or N×H×W",
        )
    if last == (usual[0] if usual else min(second, last)):
        return False, (count, second, third, last)
    return True, (count, third, last, second)


def pixel_chunk(rows: np.ndarray, first_row: int, *, channels_first: bool) -> PixelChunk:
    """Integer or float rows as stored. Raises DatasetError naming the row for integers outside 0–255, and for NaN."""
    pixels = rows[..., np.newaxis] if rows.ndim == 3 else rows.transpose(0, 2, 3, 1) if channels_first else rows
    pixels = np.ascontiguousarray(_floats(pixels, first_row) if rows.dtype.kind == "f" else _bytes(pixels, first_row))
    return PixelChunk(pixels, [sample_digest(image) for image in pixels])


def _floats(pixels: np.ndarray, first_row: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and is refused as such
        pixels = pixels.astype(np.float32)
    wrong = ~np.isfinite(pixels).all(axis=(1, 2, 3))
    if wrong.any():
        raise DatasetError(
            "pixel_not_finite",
            f"image in row {first_row + int(wrong.argmax())} has a NaN or infinite pixel",
            hint="check how the images were made",
        )
    return pixels


def _bytes(pixels: np.ndarray, first_row: int) -> np.ndarray:
    wrong = ((pixels < 0) | (pixels > 255)).any(axis=(1, 2, 3))
    if wrong.any():
        row = int(wrong.argmax())
        raise DatasetError(
            "pixel_range",
            f"image in row {first_row + row} has integer pixels from {pixels[row].min()} "
            f"to {pixels[row].max()}, outside 0–255",
            hint="save float32 for any other range",
        )
    return pixels.astype(np.uint8)

"""Decode images that come as files, whatever they came in: a Parquet column, or members of an archive."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from PIL import Image

from archrepair_core.data.columns import Column
from archrepair_core.data.images import (
    MAX_IMAGE_PIXELS,
    PixelChunk,
    SampleStream,
    SkippedImage,
    check_size,
    check_skipped,
    reason_of,
    sample_digest,
)
from archrepair_core.errors import DatasetError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
BATCH_BYTES = 16 * 2**20
MAX_THREADS = 4
PARALLEL_PIXELS = 64 * 64
GREY_MODES = ("1", "L", "LA")
COLOR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "RGBX", "RGBa")
# What Pillow's decoders raise for bytes that are not the image they claim to be.
_BROKEN_IMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    TypeError,
    OverflowError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class EncodedImage:
    """One image file, and how to name it to who sent it: `row 7`, `'cats/1.png'`."""

    name: str
    content: bytes


@dataclass(frozen=True)
class EncodedImages:
    """As many as there are labels. `batches` begins anew each time it is called, and never yields an empty batch."""

    batches: Callable[[], Iterator[list[EncodedImage]]]
    labels: np.ndarray
    format: str
    class_names: tuple[str, ...] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)


def decode_images(encoded: EncodedImages, *, max_bytes: int, resize: tuple[int, int] | None) -> SampleStream:
    """The images as a stream of uint8; `resize` is (height, width).

    Without `resize` all images must have the size of the first. They are stored with 3 channels as soon as one has
    colour, else with 1; transparency is dropped. EXIF orientation is ignored, as torchvision's ImageFolder does.
    """
    channels = _channels(encoded)
    first, pixels_HWC = _first(encoded, channels=channels)
    height, width = resize or pixels_HWC.shape[:2]
    shape = (len(encoded.labels), height, width, channels)
    check_size(shape, np.dtype(np.uint8), max_bytes=max_bytes)
    chunks = _pixel_chunks(encoded, size=(height, width, channels), like=first.name, resize=resize)
    return SampleStream(
        shape,
        np.dtype(np.uint8),
        chunks,
        encoded.labels,
        encoded.format,
        class_names=encoded.class_names,
        columns=encoded.columns,
    )


def _channels(encoded: EncodedImages) -> int:
    """3 as soon as one image has colour, else 1. Only headers are read, and colour sets stop at the first image."""
    for batch in encoded.batches():
        for image in batch:
            with suppress(*_BROKEN_IMAGE), _open_image(image) as opened:
                if opened.mode in COLOR_MODES:
                    return 3
    return 1


def _first(encoded: EncodedImages, *, channels: int) -> tuple[EncodedImage, np.ndarray]:
    """The first image that can be decoded, and its pixels."""
    skipped: list[SkippedImage] = []
    for batch in encoded.batches():
        for image in batch:
            decoded = _decode(image, channels=channels)
            if isinstance(decoded, np.ndarray):
                return image, decoded
            skipped.append(replace(decoded, row=len(skipped)))
            check_skipped(skipped, len(encoded.labels))
    raise AssertionError("there are more images than may be skipped")


def _open_image(encoded: EncodedImage) -> Image.Image:
    image = Image.open(io.BytesIO(encoded.content), formats=IMAGE_FORMATS)
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise DatasetError(
            "image_too_large",
            f"image in {encoded.name} is {image.height}×{image.width}, more than {MAX_IMAGE_PIXELS} pixels",
            hint="send smaller images",
        )
    if image.mode not in GREY_MODES + COLOR_MODES:
        raise DatasetError(
            "image_mode",
            f"image in {encoded.name} has pixels of mode {image.mode!r}, not 8 bits per channel",
            hint="convert it to 8-bit grey or RGB, or send float images as .npz",
        )
    return image


def _decode(encoded: EncodedImage, *, channels: int) -> np.ndarray | SkippedImage:
    """H×W×C; or why not, for bytes that are not the image they claim to be."""
    mode = "RGB" if channels == 3 else "L"
    try:
        with _open_image(encoded) as image:
            # A palette with transparency has to pass through RGBA, or Pillow warns.
            flat = image.convert("RGBA") if image.mode in ("P", "PA") else image
            pixels = np.array(flat if flat.mode == mode else flat.convert(mode))
    except DatasetError:
        raise
    except _BROKEN_IMAGE as error:
        return SkippedImage(0, encoded.name, reason_of(error))
    return pixels.reshape(*pixels.shape[:2], channels)


def _pixel_chunks(
    encoded: EncodedImages, *, size: tuple[int, int, int], like: str, resize: tuple[int, int] | None
) -> Iterator[PixelChunk]:
    decode_into = partial(_decode_into, like=like, resize=resize)
    # Pillow lets go of the interpreter while it decompresses. Of small images that is too short to gain by.
    workers = min(MAX_THREADS, len(os.sched_getaffinity(0))) if size[0] * size[1] >= PARALLEL_PIXELS else 1
    with ThreadPoolExecutor(workers) as pool:
        for batch in encoded.batches():
            pixels_BHWC = np.zeros((len(batch), *size), dtype=np.uint8)
            found = list((pool.map if workers > 1 else map)(decode_into, pixels_BHWC, batch))
            skipped = (replace(item, row=row) for row, item in enumerate(found) if isinstance(item, SkippedImage))
            digests = [b"" if isinstance(item, SkippedImage) else item for item in found]
            yield PixelChunk(pixels_BHWC, digests, tuple(skipped))


def _decode_into(
    pixels_HWC: np.ndarray, image: EncodedImage, *, like: str, resize: tuple[int, int] | None
) -> bytes | SkippedImage:
    """The digest of the image as it was sent. Fitted at once, so that no more large images wait than threads work."""
    size = pixels_HWC.shape
    decoded_HWC = _decode(image, channels=size[2])
    if isinstance(decoded_HWC, SkippedImage):
        return decoded_HWC
    same = decoded_HWC.shape == size
    pixels_HWC[:] = decoded_HWC if same else _fit(decoded_HWC, size, name=image.name, like=like, resize=resize)
    return sample_digest(decoded_HWC)


def _fit(
    image_HWC: np.ndarray, size: tuple[int, ...], *, name: str, like: str, resize: tuple[int, int] | None
) -> np.ndarray:
    height, width, channels = size
    if resize is None:
        raise DatasetError(
            "mixed_sizes",
            f"image in {name} is {image_HWC.shape[0]}×{image_HWC.shape[1]} (height×"
            f"width) where {like} is {height}×{width}",
            hint="set preprocessing.resize to [height, width]",
        )
    image = Image.fromarray(image_HWC if channels == 3 else image_HWC[..., 0])
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(size)

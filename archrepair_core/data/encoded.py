"""Decode images that come as files, whatever they came in: a Parquet column, or members of an archive."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from archrepair_core.data.images import (
    MAX_IMAGE_PIXELS,
    PixelChunk,
    SampleStream,
    check_size,
    reason_of,
    sample_digest,
)
from archrepair_core.errors import DatasetError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
BATCH_BYTES = 16 * 2**20
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


def decode_images(encoded: EncodedImages, *, max_bytes: int, resize: tuple[int, int] | None) -> SampleStream:
    """The images as a stream of uint8; `resize` is (height, width).

    Without `resize` all images must have the size of the first. They are stored with 3 channels as soon as one has
    colour, else with 1; transparency is dropped. EXIF orientation is ignored, as torchvision's ImageFolder does.
    """
    channels = _channels(encoded)
    first = next(encoded.batches())[0]
    height, width = resize or _decode(first, channels=channels).shape[:2]
    shape = (len(encoded.labels), height, width, channels)
    check_size(shape, np.dtype(np.uint8), max_bytes=max_bytes)
    chunks = _pixel_chunks(encoded, size=(height, width, channels), like=first.name, resize=resize)
    return SampleStream(shape, np.dtype(np.uint8), chunks, encoded.labels, encoded.format, encoded.class_names)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN_IMAGE as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            "image_broken",
            f"image in {name} cannot be decoded: {reason_of(error)}",
            hint=f"images are {', '.join(IMAGE_FORMATS)} files, whole and not truncated",
        ) from error


def _channels(encoded: EncodedImages) -> int:
    """3 as soon as one image has colour, else 1. Only headers are read, and colour sets stop at the first image."""
    for batch in encoded.batches():
        for image in batch:
            with _decoding(image.name), _open_image(image) as opened:
                if opened.mode in COLOR_MODES:
                    return 3
    return 1


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


def _decode(encoded: EncodedImage, *, channels: int) -> np.ndarray:
    mode = "RGB" if channels == 3 else "L"
    with _decoding(encoded.name), _open_image(encoded) as image:
        # A palette with transparency has to pass through RGBA, or Pillow warns.
        flat = image.convert("RGBA") if image.mode in ("P", "PA") else image
        pixels = np.array(flat if flat.mode == mode else flat.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def _pixel_chunks(
    encoded: EncodedImages, *, size: tuple[int, int, int], like: str, resize: tuple[int, int] | None
) -> Iterator[PixelChunk]:
    for batch in encoded.batches():
        pixels_BHWC = np.empty((len(batch), *size), dtype=np.uint8)
        digests = []
        for place, image in enumerate(batch):
            image_HWC = _decode(image, channels=size[2])
            digests.append(sample_digest(image_HWC))
            if image_HWC.shape != size:
                image_HWC = _fit(image_HWC, size, name=image.name, like=like, resize=resize)
            pixels_BHWC[place] = image_HWC
        yield PixelChunk(pixels_BHWC, digests)


def _fit(
    image_HWC: np.ndarray, size: tuple[int, int, int], *, name: str, like: str, resize: tuple[int, int] | None
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

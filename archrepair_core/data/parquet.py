"""Read Parquet as Hugging Face writes it: `image` (struct{bytes, path} or plain binary), `label` (integer, if any)."""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from archrepair_core.data.images import (
    MAX_IMAGE_PIXELS,
    PixelChunk,
    SampleStream,
    check_count,
    check_labels_usable,
    check_size,
    no_labels,
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


def read_parquet(path: Path, *, max_bytes: int, resize: tuple[int, int] | None = None) -> SampleStream:
    """Stream and decode the images of a Parquet file to uint8; `resize` is (height, width).

    Without `resize` all images must have the size of the first. They are stored with 3 channels as soon as one has
    colour, else with 1; transparency is dropped. EXIF orientation is ignored, as torchvision's ImageFolder does.
    """
    column, labels = _check_schema(path)
    channels = _channels(path, column)
    first = next(_encoded(path, column))[0]
    height, width = resize or _decode(first, 0, channels=channels).shape[:2]
    shape = (len(labels), height, width, channels)
    check_size(shape, np.dtype(np.uint8), max_bytes=max_bytes)
    chunks = _pixel_chunks(path, column, size=(height, width, channels), resize=resize)
    return SampleStream(shape, np.dtype(np.uint8), chunks, labels)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            "parquet_broken",
            f"the Parquet file cannot be read: {reason_of(error)}",
            hint="it may be truncated: write it again and compare its size",
        ) from error


@contextmanager
def _decoding(row: int) -> Iterator[None]:
    try:
        yield
    except _BROKEN_IMAGE as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            "image_broken",
            f"image in row {row} cannot be decoded: {reason_of(error)}",
            hint=f"images are {', '.join(IMAGE_FORMATS)} files, whole and not truncated",
        ) from error


def _open(path: Path) -> pq.ParquetFile:
    # Without pre_buffer and with a buffer, a row group is read page by page rather than whole.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)


def _check_schema(path: Path) -> tuple[str, np.ndarray]:
    """The leaf column that holds the encoded images, and all labels."""
    with _reading(), _open(path) as file:
        schema = file.schema_arrow
        if "image" not in schema.names:
            raise DatasetError(
                "column_missing",
                f"the Parquet file has no column 'image'; it holds: {', '.join(schema.names[:20]) or 'nothing'}",
                hint="name the columns 'image' (struct{bytes, path} or binary) and 'label' (integer)",
            )
        check_count(file.metadata.num_rows)
        column = _image_leaf(schema.field("image").type)
        return column, _labels(file) if "label" in schema.names else no_labels(file.metadata.num_rows)


def _labels(file: pq.ParquetFile) -> np.ndarray:
    """The column `label`; all null is a set without labels."""
    label_type = file.schema_arrow.field("label").type
    if not pa.types.is_integer(label_type) and not pa.types.is_null(label_type):
        raise DatasetError(
            "labels_not_integer",
            f"column 'label' holds {label_type}, not integers",
            hint="write class indices as int64",
        )
    labels = file.read(columns=["label"], use_threads=False).column("label")
    _check_rows(len(labels), at_least=file.metadata.num_rows, at_most=file.metadata.num_rows)
    if labels.null_count == len(labels):
        return no_labels(len(labels))
    if labels.null_count:
        row = labels.is_null().to_pylist().index(True)
        raise DatasetError(
            "label_missing", f"row {row} has no label", hint="leave such rows out, or send a set without labels"
        )
    return check_labels_usable(labels.to_numpy())


def _image_leaf(image_type: pa.DataType) -> str:
    if _is_bytes(image_type):
        return "image"
    if pa.types.is_struct(image_type) and "bytes" in image_type.names and _is_bytes(image_type.field("bytes").type):
        return "image.bytes"
    raise DatasetError(
        "image_column_type",
        f"column 'image' holds {image_type}, not encoded images",
        hint="write struct{bytes, path} as Hugging Face datasets do, or binary, of PNG or JPEG files",
    )


def _is_bytes(arrow_type: pa.DataType) -> bool:
    return pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type)


def _encoded(path: Path, column: str) -> Iterator[list[bytes]]:
    """The encoded images in order, as many at a time as fit the batch size."""
    row = 0
    with _reading(), _open(path) as file:
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata), columns=[column], use_threads=False):
            images = batch.column(0)
            encoded = (images if column == "image" else images.field("bytes")).to_pylist()
            if None in encoded:
                raise DatasetError(
                    "image_bytes_missing",
                    f"row {row + encoded.index(None)} has no image bytes",
                    hint="store the encoded file itself in the row, not only its path",
                )
            _check_rows(row + len(encoded), at_most=file.metadata.num_rows)
            row += len(encoded)
            if encoded:
                yield encoded
        _check_rows(row, at_least=file.metadata.num_rows)


def _batch_rows(metadata: pq.FileMetaData) -> int:
    total_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return min(1024, max(1, BATCH_BYTES * metadata.num_rows // max(1, total_bytes)))


def _check_rows(rows: int, *, at_most: float = math.inf, at_least: int = 0) -> None:
    if not at_least <= rows <= at_most:
        raise ValueError(f"it has {rows} rows or more, which is not what its footer says")


def _channels(path: Path, column: str) -> int:
    """3 as soon as one image has colour, else 1. Only headers are read, and colour sets stop at the first image."""
    row = 0
    for encoded in _encoded(path, column):
        for data in encoded:
            with _decoding(row), _open_image(data, row) as image:
                if image.mode in COLOR_MODES:
                    return 3
            row += 1
    return 1


def _open_image(data: bytes, row: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise DatasetError(
            "image_too_large",
            f"image in row {row} is {image.height}×{image.width}, more than {MAX_IMAGE_PIXELS} pixels",
            hint="send smaller images",
        )
    if image.mode not in GREY_MODES + COLOR_MODES:
        raise DatasetError(
            "image_mode",
            f"image in row {row} has pixels of mode {image.mode!r}, not 8 bits per channel",
            hint="convert it to 8-bit grey or RGB, or send float images as .npz",
        )
    return image


def _decode(data: bytes, row: int, *, channels: int) -> np.ndarray:
    mode = "RGB" if channels == 3 else "L"
    with _decoding(row), _open_image(data, row) as image:
        # A palette with transparency has to pass through RGBA, or Pillow warns.
        flat = image.convert("RGBA") if image.mode in ("P", "PA") else image
        pixels = np.array(flat if flat.mode == mode else flat.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def _pixel_chunks(
    path: Path, column: str, *, size: tuple[int, int, int], resize: tuple[int, int] | None
) -> Iterator[PixelChunk]:
    row = 0
    for encoded in _encoded(path, column):
        pixels_BHWC = np.empty((len(encoded), *size), dtype=np.uint8)
        digests = []
        for place, data in enumerate(encoded):
            image_HWC = _decode(data, row, channels=size[2])
            digests.append(sample_digest(image_HWC))
            if image_HWC.shape != size:
                image_HWC = _fit(image_HWC, size, row=row, resize=resize)
            pixels_BHWC[place] = image_HWC
            row += 1
        yield PixelChunk(pixels_BHWC, digests)


def _fit(image_HWC: np.ndarray, size: tuple[int, int, int], *, row: int, resize: tuple[int, int] | None) -> np.ndarray:
    height, width, channels = size
    if resize is None:
        raise DatasetError(
            "mixed_sizes",
            f"image in row {row} is {image_HWC.shape[0]}×{image_HWC.shape[1]} (height×"
            f"width) where row 0 is {height}×{width}",
            hint="set preprocessing.resize to [height, width]",
        )
    image = Image.fromarray(image_HWC if channels == 3 else image_HWC[..., 0])
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(size)

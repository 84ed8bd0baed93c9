"""Read images and labels that are `.npy` arrays in one archive, as `.npz` is. Streamed, never whole.

The two headers are checked before an array is read; no pickle is ever loaded.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO

import numpy as np

from archrepair_core.data.archives import reading
from archrepair_core.data.columns import Column, encode_column
from archrepair_core.data.images import SampleStream, check_labels_usable, check_size, no_labels
from archrepair_core.data.pixels import layout, pixel_chunk, stored_dtype
from archrepair_core.errors import DatasetError

CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class ArrayFile:
    """One `.npy` file of so many bytes, wherever it is."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class _Array:
    """What the header of a file says, checked against its size."""

    file: ArrayFile
    shape: tuple[int, ...]
    dtype: np.dtype


def read_arrays(
    images_file: ArrayFile,
    labels_file: ArrayFile | None,
    *,
    max_bytes: int,
    columns: Mapping[str, ArrayFile] = MappingProxyType({}),
) -> SampleStream:
    """Stream images with their labels; without a file of labels it is a set without labels.

    Images are N×H×W (grey), N×H×W×C or N×C×H×W, see `layout`. Integers 0–255 become uint8, floats float32.
    """
    images = _read_header(images_file)
    labels = _read_header(labels_file) if labels_file else None
    channels_first, shape = layout(images.shape)
    _check_dtype(images)
    dtype = stored_dtype(images.dtype)
    check_size(shape, dtype, max_bytes=max_bytes)
    chunks = (pixel_chunk(rows, row, channels_first=channels_first) for row, rows in _row_chunks(images))
    numbers = no_labels(shape[0]) if labels is None else _read_labels(labels, shape[0])
    metadata = {name: _read_column(_read_header(file), shape[0]) for name, file in columns.items()}
    return SampleStream(shape, dtype, chunks, numbers, "npz", columns=metadata)


def _read_labels(labels: _Array, count: int) -> np.ndarray:
    _check_labels_array(labels, count=count)
    return check_labels_usable(np.concatenate([rows for _, rows in _row_chunks(labels)]))


def _read_column(column: _Array, count: int) -> Column:
    if column.dtype.kind not in "biufUS" or column.shape != (count,):
        raise DatasetError(
            "column_type",
            f"the array {column.file.name!r} has the shape {column.shape} of {column.dtype}, not one value for each of "
            f"the {count} images",
            hint="save a column as one axis of words, numbers or truth values, in the order of the images",
        )
    values = (value for _, rows in _row_chunks(column) for value in rows.tolist())
    return encode_column(column.file.name, (v.decode("latin-1") if isinstance(v, bytes) else v for v in values))


def _read_header(file: ArrayFile) -> _Array:
    with reading("arrays"), file.open() as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):  # later versions exist for field names; their headers may claim 4 GiB
            raise ValueError(f"{file.name!r} is an .npy array of version {version}, which holds structured data")
        with warnings.catch_warnings():
            # numpy's advice to save a file of Python 2 again is for who wrote it; what it says is checked below.
            warnings.simplefilter("ignore", UserWarning)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        header_bytes = stream.tell()
        if dtype.hasobject:
            raise DatasetError(
                "object_array",
                f"{file.name!r} is an array of Python objects, which only unpickling could read",
                hint="all images must have one shape: numpy.stack them before saving",
            )
        if fortran_order:
            raise DatasetError(
                "fortran_order",
                f"{file.name!r} is stored column by column and cannot be read row by row",
                hint="save numpy.ascontiguousarray(images)",
            )
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != file.size - header_bytes:
            raise ValueError(
                f"{file.name!r} declares the shape {shape} of {dtype}, which its {file.size} bytes do not hold"
            )
    return _Array(file, shape, dtype)


def _check_dtype(images: _Array) -> None:
    if images.dtype.kind not in "uif":
        raise DatasetError(
            "images_not_numeric", f"'images' holds {images.dtype}, not numbers", hint="save uint8 (0–255) or float32"
        )


def _check_labels_array(labels: _Array, *, count: int) -> None:
    if labels.dtype.kind not in "ui":
        raise DatasetError(
            "labels_not_integer",
            f"'labels' holds {labels.dtype}, not integers",
            hint="save class indices as int64, e.g. labels.astype('int64')",
        )
    if len(labels.shape) != 1:
        raise DatasetError(
            "labels_shape",
            f"'labels' has the shape {labels.shape}, not one axis",
            hint="one class index per image: labels.ravel(), or argmax(1) of one-hot labels",
        )
    if labels.shape[0] != count:
        raise DatasetError(
            "length_mismatch",
            f"there are {count} images but {labels.shape[0]} labels",
            hint="send one label per image, in the same order",
        )


def _row_chunks(array: _Array) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of an array, a few megabytes at a time."""
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    step = max(1, CHUNK_BYTES // row_bytes)
    with reading("arrays"), array.file.open() as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        for row in range(0, array.shape[0], step):
            rows = min(step, array.shape[0] - row)
            flat = np.frombuffer(stream.read(rows * row_bytes), dtype=array.dtype)
            yield row, flat.reshape(rows, *array.shape[1:])

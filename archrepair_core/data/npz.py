"""Read `.npz`: a zip of `.npy` members, of which `images` and `labels`, if any, are wanted. Streamed, never whole.

The zip directory and the two array headers are checked before anything is unpacked; no pickle is ever loaded.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archrepair_core.data.images import (
    PixelChunk,
    SampleStream,
    check_labels_usable,
    check_size,
    no_labels,
    reason_of,
    sample_digest,
)
from archrepair_core.errors import DatasetError

MAX_RATIO = 200
# Small members may compress as well as they like: blank images do.
RATIO_FREE_BYTES = 64 * 2**20
CHUNK_BYTES = 4 * 2**20
# Tried in this order: 4 is as often a tiny image's side as it is RGBA.
COMMON_CHANNELS = ((1, 3), (4,))
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile, zlib and numpy's header parser raise for bytes that are not what they claim to be.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    TypeError,
    KeyError,
    RuntimeError,
)


@dataclass(frozen=True)
class _Member:
    """One `.npy` in the zip: what its header says, checked against the size the directory declares."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def read_npz(path: Path, *, max_bytes: int) -> SampleStream:
    """Stream `images` and `labels` of an .npz file; one without `labels` is a set without labels.

    Images: N×H×W (grey), N×H×W×C or N×C×H×W. Of four axes the last is C when it is 1 or 3, else the second when it
    is; then the same with 4; else the smaller of the two. Bytes and integers 0–255 become uint8, floats float32.
    """
    images, labels = _members(path, max_bytes=max_bytes)
    channels_first, shape = _layout(images.shape)
    _check_dtype(images)
    dtype = np.dtype(np.float32 if images.dtype.kind == "f" else np.uint8)
    check_size(shape, dtype, max_bytes=max_bytes)
    chunks = (_pixel_chunk(rows, row, channels_first=channels_first) for row, rows in _row_chunks(images))
    return SampleStream(shape, dtype, chunks, no_labels(shape[0]) if labels is None else _read_labels(labels, shape[0]))


def _read_labels(labels: _Member, count: int) -> np.ndarray:
    _check_labels_array(labels, count=count)
    return check_labels_usable(np.concatenate([rows for _, rows in _row_chunks(labels)]))


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    """Every way a broken archive shows itself becomes one error."""
    try:
        yield
    except DatasetError:
        raise
    except _BROKEN as error:
        raise DatasetError(
            "archive_broken",
            f"the .npz file cannot be unpacked: {reason_of(error)}",
            hint="it may be truncated: write it again with numpy.savez and compare its size",
        ) from error


def _members(path: Path, *, max_bytes: int) -> tuple[_Member, _Member | None]:
    """The images, and the labels if there are any."""
    with _unpacking(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if "images" not in names:
            raise DatasetError(
                "key_missing",
                f"the .npz file has no 'images'; it holds: {', '.join(names[:20]) or 'nothing'}",
                hint="save it with numpy.savez(path, images=…, labels=…)",
            )
        infos = [archive.getinfo(f"{key}.npy") for key in ("images", "labels") if key in names]
        _refuse_bombs(infos, max_bytes=max_bytes)
        images, *labels = (_read_header(archive, info, path) for info in infos)
    return images, labels[0] if labels else None


def _refuse_bombs(infos: list[zipfile.ZipInfo], *, max_bytes: int) -> None:
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise DatasetError(
            "too_large",
            f"images and labels unpack to {total} bytes, more than the {max_bytes} allowed",
            hint="send fewer or smaller images",
        )
    for info in infos:
        if info.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * info.compress_size):
            raise DatasetError(
                "archive_bomb",
                f"{info.filename!r} unpacks from {info.compress_size} to "
                f"{info.file_size} bytes, more than {MAX_RATIO} times its size",
                hint="save it uncompressed with numpy.savez",
            )
        if info.compress_type not in _COMPRESSIONS or info.flag_bits & 1:
            raise DatasetError(
                "archive_unsupported",
                f"{info.filename!r} is encrypted or compressed by a method other than deflate",
                hint="save it with numpy.savez or numpy.savez_compressed",
            )


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Member:
    key = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):  # later versions exist for field names; their headers may claim 4 GiB
            raise ValueError(f"{key!r} is an .npy array of version {version}, which holds structured data")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise DatasetError(
            "object_array",
            f"{key!r} is an array of Python objects, which only unpickling could read",
            hint="all images must have one shape: numpy.stack them before saving",
        )
    if fortran_order:
        raise DatasetError(
            "fortran_order",
            f"{key!r} is stored column by column and cannot be read row by row",
            hint="save numpy.ascontiguousarray(images)",
        )
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - header_bytes:
        raise ValueError(f"{key!r} declares the shape {shape} of {dtype}, which its {info.file_size} bytes do not hold")
    return _Member(path, key, shape, dtype)


def _check_dtype(images: _Member) -> None:
    if images.dtype.kind not in "uif":
        raise DatasetError(
            "images_not_numeric", f"'images' holds {images.dtype}, not numbers", hint="save uint8 (0–255) or float32"
        )


def _check_labels_array(labels: _Member, *, count: int) -> None:
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


def _layout(shape: tuple[int, ...]) -> tuple[bool, tuple[int, int, int, int]]:
    """Whether channels come before height and width, and the shape as N×H×W×C."""
    if len(shape) == 3:
        return False, (*shape, 1)
    if len(shape) != 4:
        raise DatasetError(
            "images_shape",
            f"'images' has the shape {shape}, not 3 or 4 axes",
            hint="save N×H×W (grey), N×H×W×C or N×C×H×W",
        )
    count, second, third, last = shape
    usual = [channels for group in COMMON_CHANNELS for channels in (last, second) if channels in group]
    if not usual and second == last:
        raise DatasetError(
            "layout_ambiguous",
            f"'images' has the shape {shape}: channels could be first or last",
            hint="save N×H×W×C with 1, 3 or 4 channels, or N×H×W",
        )
    if last == (usual[0] if usual else min(second, last)):
        return False, (count, second, third, last)
    return True, (count, third, last, second)


def _row_chunks(member: _Member) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of an array in the zip, a few megabytes at a time."""
    row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
    step = max(1, CHUNK_BYTES // row_bytes)
    with _unpacking(member.path), zipfile.ZipFile(member.path) as archive, archive.open(f"{member.name}.npy") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        for row in range(0, member.shape[0], step):
            rows = min(step, member.shape[0] - row)
            flat = np.frombuffer(stream.read(rows * row_bytes), dtype=member.dtype)
            yield row, flat.reshape(rows, *member.shape[1:])


def _pixel_chunk(rows: np.ndarray, first_row: int, *, channels_first: bool) -> PixelChunk:
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

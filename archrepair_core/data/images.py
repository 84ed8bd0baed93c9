"""Labelled images on disk: what every dataset format becomes.

Legend: N samples, H height, W width, C channels. Pixels are uint8 or float32, N×H×W×C, in a memory-mapped file.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from archrepair_core.data.columns import Column
from archrepair_core.errors import DatasetError

# One image of 4096×4096 is the most the spec's `resize` can ask for; larger ones are a mistake or an attack.
MAX_IMAGE_PIXELS = 4096 * 4096
MAX_CHANNELS = 64
# Labels and sample digests stay in memory (24 bytes per sample), so their number has to have an end.
MAX_SAMPLES = 20_000_000
DIGEST_DTYPE = np.dtype("S16")
NO_LABEL = -1
# Of the images of a file, so many may be broken: below a hundred images none, and never more than can be listed.
MAX_SKIPPED_SHARE = 0.01
MAX_SKIPPED = 1000
SKIPPED_NAMED = 5


@dataclass(frozen=True)
class SkippedImage:
    """An image that cannot be decoded: its row in the source, what it is called there, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class ImageRows:
    """Rows of a pixel array that is not read until asked. Indexing copies just the asked rows: `images[lo:hi]`."""

    pixels: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        height, width, channels = self.pixels.shape[1:]
        return len(self.rows), height, width, channels

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
        return self.pixels.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(self.pixels[self.rows[key]])


@dataclass(frozen=True)
class LabelledImages:
    """N labelled images. `sample_digests` identify the pixels of each; `digest` is the sha256 of pixels and labels.

    The digest is one of content: the same samples give the same one from any file format. `images.rows` are the rows
    in the source. Without labels every label is `NO_LABEL`. `class_names` stand where the labels were words, `columns`
    are the metadata that was asked for. `skipped` are images of the source that are not among the N; of parts, the one
    that keeps the name keeps them.
    """

    name: str
    images: ImageRows
    labels: np.ndarray
    digest: str
    sample_digests: np.ndarray
    source: str
    format: str = "builtin"
    class_names: tuple[str, ...] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the labels are known; a set has all of them or none."""
        return bool((self.labels != NO_LABEL).all())

    def subset(self, indices: np.ndarray, *, name: str | None = None) -> "LabelledImages":
        """The samples at `indices`, in that order, without copying a pixel."""
        parts = (self.images.rows[indices], self.labels[indices], self.sample_digests[indices])
        columns = {title: column.take(indices) for title, column in self.columns.items()}
        skipped = () if name else self.skipped
        return replace(self._with(*parts), name=name or self.name, columns=columns, skipped=skipped)

    def joined(self, other: "LabelledImages") -> "LabelledImages":
        """These samples and those of another part of the same whole, without copying a pixel."""
        assert self.images.pixels is other.images.pixels, "parts of one whole"
        rows = np.concatenate([self.images.rows, other.images.rows])
        labels = np.concatenate([self.labels, other.labels])
        joined = self._with(rows, labels, np.concatenate([self.sample_digests, other.sample_digests]))
        columns = {
            title: replace(column, codes=np.concatenate([column.codes, other.columns[title].codes]))
            for title, column in self.columns.items()
        }
        return replace(joined, columns=columns)

    def _with(self, rows: np.ndarray, labels: np.ndarray, sample_digests: np.ndarray) -> "LabelledImages":
        return replace(
            self,
            images=ImageRows(self.images.pixels, rows),
            labels=labels,
            sample_digests=sample_digests,
            digest=_digest(sample_digests, labels),
        )


@dataclass(frozen=True)
class PixelChunk:
    """Some consecutive samples: pixels B×H×W×C as stored, and the digests of the pixels as they were in the source.

    Of `skipped` images, whose row counts from the chunk's first, the pixels are blank and the digests empty.
    """

    pixels: np.ndarray
    digests: list[bytes]
    skipped: tuple[SkippedImage, ...] = ()


@dataclass(frozen=True)
class SampleStream:
    """What a format reader hands over: the final shape (N, H, W, C) and dtype, and chunks still to be read."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    chunks: Iterator[PixelChunk]
    labels: np.ndarray
    format: str
    class_names: tuple[str, ...] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)


def sample_digest(pixels_HWC: np.ndarray) -> bytes:
    """16 bytes that identify one image by its shape, dtype and pixels."""
    hasher = hashlib.blake2b(f"{pixels_HWC.shape}{pixels_HWC.dtype}".encode(), digest_size=DIGEST_DTYPE.itemsize)
    hasher.update(np.ascontiguousarray(pixels_HWC).data)
    return hasher.digest()


def store(samples: SampleStream, *, name: str, source: str, work_dir: Path) -> LabelledImages:
    """Write the stream to a new file in `work_dir` and map it; memory stays at one chunk however long the stream.

    Raises DatasetError where more images are broken than may be skipped.
    """
    count = samples.shape[0]
    sample_digests = np.empty(count, dtype=DIGEST_DTYPE)
    skipped: list[SkippedImage] = []
    done = 0
    with ExitStack() as undo:
        with tempfile.NamedTemporaryFile(dir=work_dir, prefix=f"{name}-", suffix=".pixels", delete=False) as file:
            undo.callback(Path(file.name).unlink)
            for chunk in samples.chunks:
                file.write(np.ascontiguousarray(chunk.pixels).data)
                sample_digests[done : done + len(chunk.digests)] = chunk.digests
                skipped.extend(replace(image, row=done + image.row) for image in chunk.skipped)
                check_skipped(skipped, count)
                done += len(chunk.digests)
        pixels = np.memmap(file.name, dtype=samples.dtype, mode="r", shape=samples.shape)
        undo.pop_all()
    stored = labelled_images(pixels, samples.labels, sample_digests, name=name, source=source)
    stored = replace(stored, format=samples.format, class_names=samples.class_names, columns=samples.columns)
    if skipped:
        stored = stored.subset(np.setdiff1d(np.arange(count), [image.row for image in skipped]))
    return replace(stored, skipped=tuple(skipped))


def labelled_images(
    pixels: np.ndarray, labels: np.ndarray, sample_digests: np.ndarray, *, name: str, source: str
) -> LabelledImages:
    """All rows of a pixel array (N×H×W×C) as a dataset."""
    images = ImageRows(pixels, np.arange(len(pixels)))
    return LabelledImages(name, images, labels, _digest(sample_digests, labels), sample_digests, source)


def _digest(sample_digests: np.ndarray, labels: np.ndarray) -> str:
    hasher = hashlib.sha256(np.ascontiguousarray(sample_digests).tobytes())
    hasher.update(labels.astype("<i8").tobytes())
    return hasher.hexdigest()


def reason_of(error: Exception) -> str:
    """The first line of an error, short enough to stand inside another message."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def check_count(count: int) -> None:
    """Refuse a dataset without samples, or with more than memory is kept for."""
    if count < 1:
        raise DatasetError("empty", "there are no images in the file", hint="send at least one image")
    if count > MAX_SAMPLES:
        raise DatasetError(
            "too_large", f"the file holds {count} images, more than {MAX_SAMPLES}", hint="send fewer images"
        )


def check_skipped(skipped: Sequence[SkippedImage], count: int) -> None:
    """Refuse a dataset of which more images are broken than may be skipped, naming the first."""
    allowed = min(MAX_SKIPPED, math.floor(MAX_SKIPPED_SHARE * count))
    if len(skipped) <= allowed:
        return
    named = "; ".join(f"image in {image.name} cannot be decoded: {image.reason}" for image in skipped[:SKIPPED_NAMED])
    more = f"more than the {allowed} of {count} images that may be skipped are broken: " if allowed else ""
    raise DatasetError(
        "image_broken",
        more + named,
        hint="images are PNG, JPEG, WEBP or BMP files, whole and not truncated; one in a hundred may be broken",
    )


def check_size(shape: tuple[int, int, int, int], dtype: np.dtype, *, max_bytes: int) -> None:
    """Refuse a dataset that is empty or larger than allowed, before a byte of it is read."""
    count, height, width, channels = shape
    check_count(count)
    if min(height, width, channels) < 1:
        raise DatasetError(
            "empty",
            f"images are {height}×{width} with {channels} channels: there is nothing in them",
            hint="send images of at least one pixel",
        )
    if height * width > MAX_IMAGE_PIXELS or channels > MAX_CHANNELS:
        raise DatasetError(
            "image_too_large",
            f"images are {height}×{width} with {channels} channels, more than "
            f"{MAX_IMAGE_PIXELS} pixels or {MAX_CHANNELS} channels",
            hint="send smaller images, as N×H×W×C",
        )
    total_bytes = count * height * width * channels * dtype.itemsize
    if total_bytes > max_bytes:
        raise DatasetError(
            "too_large",
            f"{count} images of {height}×{width}×{channels} are {total_bytes} bytes once "
            f"unpacked, more than the {max_bytes} allowed",
            hint="send fewer or smaller images",
        )


def no_labels(count: int) -> np.ndarray:
    """The labels of images that have none."""
    return np.full(count, NO_LABEL, dtype=np.int64)


def check_labels_usable(labels: np.ndarray) -> np.ndarray:
    """Integer labels as int64; all `NO_LABEL` is a set without labels.

    Raises DatasetError naming the first row that is negative or absurdly large.
    """
    if (labels == NO_LABEL).all():
        return no_labels(len(labels))
    unusable = np.flatnonzero((labels < 0) | (labels >= 2**31))
    if len(unusable):
        row = int(unusable[0])
        raise DatasetError(
            "label_negative" if labels[row] < 0 else "label_too_large",
            f"label {labels[row]} in row {row} is not a class index",
            hint="labels are 0, 1, 2, … in the order of the model's outputs; -1 in every row is a set without labels",
        )
    return labels.astype(np.int64)

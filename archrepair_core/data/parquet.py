"""Read Parquet as Hugging Face writes it: `image` (struct{bytes, path}, binary or lists of pixels), perhaps `label`."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from archrepair_core.data.columns import Column, check_columns, encode_column
from archrepair_core.data.encoded import BATCH_BYTES, EncodedImage, EncodedImages, decode_images
from archrepair_core.data.images import (
    PixelChunk,
    SampleStream,
    check_count,
    check_labels_usable,
    check_size,
    no_labels,
    reason_of,
)
from archrepair_core.data.labels import ClassNames, labels_of_words
from archrepair_core.data.pixel_lists import pixel_type, shape_of, to_numpy
from archrepair_core.data.pixels import layout, pixel_chunk, stored_dtype
from archrepair_core.errors import DatasetError

COLUMN_ROWS = 4096
# Arrow holds up to 12 bytes for each of a batch's pixels while it reads lists: an int64 and the levels of its lists.
BATCH_PIXELS = 2**18
# The label of each image, and the names of the classes where labels were words.
Labels = tuple[np.ndarray, tuple[str, ...] | None]


def read_parquet(
    path: Path,
    *,
    max_bytes: int,
    resize: tuple[int, int] | None = None,
    class_names: ClassNames = None,
    columns: Sequence[str] = (),
) -> SampleStream:
    """Stream the images of a Parquet file: encoded ones as `decode_images` does, lists of pixels as arrays are read.

    Lists are H×W, H×W×C or C×H×W, told apart as in `layout`, and all of one shape. Labels may be words.
    """
    image_type, (labels, names) = _check_schema(path, class_names)
    metadata = _read_columns(path, columns)
    listed = pixel_type(image_type)
    if listed is None:
        encoded = EncodedImages(partial(_encoded, path, image_type), labels, "parquet", names, metadata)
        return decode_images(encoded, max_bytes=max_bytes, resize=resize)
    rows_shape = _listed_shape(path)
    channels_first, shape = layout((len(labels), *rows_shape))
    dtype = stored_dtype(listed)
    check_size(shape, dtype, max_bytes=max_bytes)
    chunks = _pixel_chunks(path, rows_shape, channels_first=channels_first)
    return SampleStream(shape, dtype, chunks, labels, "parquet", names, metadata)


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


def _open(path: Path) -> pq.ParquetFile:
    # Without pre_buffer and with a buffer, a row group is read page by page rather than whole.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)


def _check_schema(path: Path, class_names: ClassNames) -> tuple[pa.DataType, Labels]:
    """What the images are in, and all labels."""
    with _reading(), _open(path) as file:
        schema = file.schema_arrow
        if "image" not in schema.names:
            raise DatasetError(
                "column_missing",
                f"the Parquet file has no column 'image'; it holds: {', '.join(schema.names[:20]) or 'nothing'}",
                hint="name the columns 'image' (struct{bytes, path}, binary or lists of pixels) and 'label' (integer)",
            )
        _check_once(schema, ["image", "label"])
        check_count(file.metadata.num_rows)
        image_type = schema.field("image").type
        _check_image_type(image_type)
        if "label" not in schema.names:
            return image_type, (no_labels(file.metadata.num_rows), None)
        return image_type, _labels(file, class_names)


def _check_once(schema: pa.Schema, names: Sequence[str]) -> None:
    for name in names:
        if schema.names.count(name) > 1:
            raise DatasetError(
                "column_twice",
                f"the Parquet file has {schema.names.count(name)} columns {name!r}",
                hint="give every column a name of its own",
            )


def _labels(file: pq.ParquetFile, class_names: ClassNames) -> Labels:
    """The column `label`; all null is a set without labels."""
    label_type = file.schema_arrow.field("label").type
    words = pa.types.is_string(label_type) or pa.types.is_large_string(label_type)
    if not words and not pa.types.is_integer(label_type) and not pa.types.is_null(label_type):
        raise DatasetError(
            "labels_not_integer",
            f"column 'label' holds {label_type}, neither integers nor names",
            hint="write class indices as int64, or the names of classes as strings",
        )
    labels = file.read(columns=["label"], use_threads=False).column("label")
    _check_rows(len(labels), at_least=file.metadata.num_rows, at_most=file.metadata.num_rows)
    if labels.null_count == len(labels):
        return no_labels(len(labels)), None
    if labels.null_count:
        row = labels.is_null().to_pylist().index(True)
        raise DatasetError(
            "label_missing", f"row {row} has no label", hint="leave such rows out, or send a set without labels"
        )
    if words:
        return labels_of_words(labels.to_pylist(), class_names)
    return check_labels_usable(labels.to_numpy()), None


def _read_columns(path: Path, asked: Sequence[str]) -> dict[str, Column]:
    with _reading(), _open(path) as file:
        schema = file.schema_arrow
        check_columns(asked, [name for name in schema.names if name != "image"])
        _check_once(schema, asked)
        for name in asked:
            if pa.types.is_nested(schema.field(name).type) or _is_bytes(schema.field(name).type):
                raise DatasetError(
                    "column_type",
                    f"the column {name!r} holds {schema.field(name).type}, not one value per image",
                    hint="slice by a column of words, numbers or truth values",
                )
        return {name: encode_column(name, _values(file, name)) for name in asked}


def _values(file: pq.ParquetFile, name: str) -> Iterator[object]:
    rows = 0
    for batch in file.iter_batches(batch_size=COLUMN_ROWS, columns=[name], use_threads=False):
        rows += len(batch)
        _check_rows(rows, at_most=file.metadata.num_rows)
        yield from batch.column(name).to_pylist()
    _check_rows(rows, at_least=file.metadata.num_rows)


def _check_image_type(image_type: pa.DataType) -> None:
    if _is_bytes(image_type) or pixel_type(image_type) is not None:
        return
    if pa.types.is_struct(image_type) and "bytes" in image_type.names and _is_bytes(image_type.field("bytes").type):
        return
    raise DatasetError(
        "image_column_type",
        f"column 'image' holds {image_type}, neither encoded images nor lists of pixels",
        hint="write struct{bytes, path} as Hugging Face datasets do, or binary, of PNG or JPEG files; or nested lists "
        "of integers or floats, H×W, H×W×C or C×H×W",
    )


def _is_bytes(arrow_type: pa.DataType) -> bool:
    return pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type)


def _encoded(path: Path, image_type: pa.DataType) -> Iterator[list[EncodedImage]]:
    """The encoded images in order, as many at a time as fit the batch size."""
    in_struct = pa.types.is_struct(image_type)
    for row, images in _image_batches(path, "image.bytes" if in_struct else "image", _encoded_rows):
        encoded = (images.field("bytes") if in_struct else images).to_pylist()
        if None in encoded:
            raise DatasetError(
                "image_bytes_missing",
                f"row {row + encoded.index(None)} has no image bytes",
                hint="store the encoded file itself in the row, not only its path",
            )
        yield [EncodedImage(f"row {row + place}", content) for place, content in enumerate(encoded)]


def _listed_shape(path: Path) -> tuple[int, ...]:
    """The shape of the first image."""
    with closing(_image_batches(path, "image", lambda _: 1)) as batches:
        row, images = next(batches)
        return shape_of(images, row)


def _pixel_chunks(path: Path, shape: tuple[int, ...], *, channels_first: bool) -> Iterator[PixelChunk]:
    for row, images in _image_batches(path, "image", partial(_listed_rows, math.prod(shape))):
        yield pixel_chunk(to_numpy(images, shape, row), row, channels_first=channels_first)


def _image_batches(
    path: Path, column: str, batch_rows: Callable[[pq.FileMetaData], int]
) -> Generator[tuple[int, pa.Array]]:
    """(first row, images) in order and never empty; at least one, for `check_count` has passed."""
    row = 0
    with _reading(), _open(path) as file:
        for batch in file.iter_batches(batch_size=batch_rows(file.metadata), columns=[column], use_threads=False):
            _check_rows(row + len(batch), at_most=file.metadata.num_rows)
            if len(batch):
                yield row, batch.column("image")
            row += len(batch)
        _check_rows(row, at_least=file.metadata.num_rows)


def _encoded_rows(metadata: pq.FileMetaData) -> int:
    total_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return min(1024, max(1, BATCH_BYTES * metadata.num_rows // max(1, total_bytes)))


def _listed_rows(pixels: int, metadata: pq.FileMetaData) -> int:
    """How many images of so many pixels are a batch; fewer where others seem to be larger, so that it can be said.

    Their size is guessed at a byte per pixel. The footer has the number itself, but pyarrow ends the process when it is
    asked for that of a damaged one.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max(group.total_byte_size // max(1, group.num_rows) for group in groups)
    return max(1, BATCH_PIXELS // max(pixels, largest))


def _check_rows(rows: int, *, at_most: float = math.inf, at_least: int = 0) -> None:
    if not at_least <= rows <= at_most:
        raise ValueError(f"it has {rows} rows or more, which is not what its footer says")

"""Read Parquet as Hugging Face writes it: `image` (struct{bytes, path} or plain binary), `label` (integer, if any)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from archrepair_core.data.columns import Column, check_columns, encode_column
from archrepair_core.data.encoded import BATCH_BYTES, EncodedImage, EncodedImages, decode_images
from archrepair_core.data.images import SampleStream, check_count, check_labels_usable, no_labels, reason_of
from archrepair_core.data.labels import ClassNames, labels_of_words
from archrepair_core.errors import DatasetError

COLUMN_ROWS = 4096
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
    """Stream and decode the images of a Parquet file to uint8, see `decode_images`. Labels may be words."""
    column, (labels, names) = _check_schema(path, class_names)
    metadata = _read_columns(path, columns)
    encoded = EncodedImages(partial(_encoded, path, column), labels, "parquet", names, metadata)
    return decode_images(encoded, max_bytes=max_bytes, resize=resize)


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


def _check_schema(path: Path, class_names: ClassNames) -> tuple[str, Labels]:
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
        if "label" not in schema.names:
            return column, (no_labels(file.metadata.num_rows), None)
        return column, _labels(file, class_names)


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
        yield from batch.column(0).to_pylist()
    _check_rows(rows, at_least=file.metadata.num_rows)


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


def _encoded(path: Path, column: str) -> Iterator[list[EncodedImage]]:
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
            if encoded:
                yield [EncodedImage(f"row {row + place}", content) for place, content in enumerate(encoded)]
            row += len(encoded)
        _check_rows(row, at_least=file.metadata.num_rows)


def _batch_rows(metadata: pq.FileMetaData) -> int:
    total_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return min(1024, max(1, BATCH_BYTES * metadata.num_rows // max(1, total_bytes)))


def _check_rows(rows: int, *, at_most: float = math.inf, at_least: int = 0) -> None:
    if not at_least <= rows <= at_most:
        raise ValueError(f"it has {rows} rows or more, which is not what its footer says")

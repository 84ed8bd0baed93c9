"""Load a dataset from a reference. The format is found by content through one table, never by the file's name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from archrepair_core.data.archives import TAR_MAGIC, TAR_MAGIC_AT, ZIP_MAGIC, is_tar
from archrepair_core.data.columns import check_columns
from archrepair_core.data.images import (
    DIGEST_DTYPE,
    LabelledImages,
    SampleStream,
    labelled_images,
    sample_digest,
    store,
)
from archrepair_core.data.labels import ClassNames
from archrepair_core.data.layouts import read_archive
from archrepair_core.data.parquet import read_parquet
from archrepair_core.data.references import resolve_reference
from archrepair_core.errors import DatasetError

MAX_DATASET_BYTES = 64 * 2**30
PARQUET_MAGIC = b"PAR1"
HEAD_BYTES = TAR_MAGIC_AT + len(TAR_MAGIC)
# What people send by mistake, so that the error can name it.
OTHER_FORMATS: dict[bytes, str] = {
    b"\x93NUMPY": "a single .npy array",
    b"PK\x05\x06": "an empty zip archive",
    b"\x89PNG": "one PNG image",
    b"\xff\xd8\xff": "one JPEG image",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"{": "JSON text",
    b"<": "an HTML or XML page",
}


def load_dataset(
    reference: str,
    uploads: Mapping[str, Path],
    *,
    name: str,
    work_dir: Path,
    resize: tuple[int, int] | None = None,
    max_bytes: int = MAX_DATASET_BYTES,
    class_names: ClassNames = None,
    columns: Sequence[str] = (),
) -> LabelledImages:
    """Load an archive, Parquet or a builtin; pixels go to a memory-mapped file in `work_dir`, so memory stays flat.

    `resize` (height, width) is applied where encoded images may differ in size; `class_names` are the model's outputs
    in their order, for labels that are words; `columns` are the metadata to read along. Raises DatasetError for
    anything that is not such a file, has no such column, or unpacks to more than `max_bytes`.
    """
    found = resolve_reference(reference, uploads)
    if not isinstance(found, Path):
        check_columns(columns, ())
        return BUILTINS[found.name](name, reference)
    samples = _reader_of(found)(found, max_bytes=max_bytes, resize=resize, class_names=class_names, columns=columns)
    return store(samples, name=name, source=reference, work_dir=work_dir)


def _reader_of(path: Path) -> Callable[..., SampleStream]:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(PARQUET_MAGIC):
        return read_parquet
    if head.startswith(ZIP_MAGIC) or is_tar(head):
        return read_archive
    raise DatasetError(
        "format_unknown",
        f"the file is neither .npz, Parquet, zip nor tar: it {_describe(head)}",
        hint="send .npz with 'images' and 'labels', Parquet with the columns 'image' and 'label', or an archive of "
        "class folders",
    )


def _describe(head: bytes) -> str:
    if not head:
        return "is empty"
    known = [words for magic, words in OTHER_FORMATS.items() if head.startswith(magic)]
    return f"looks like {known[0]}" if known else f"begins with {head[:16]!r}"


def _digits(name: str, source: str) -> LabelledImages:
    from sklearn.datasets import load_digits  # a second of import that only this dataset needs

    digits = load_digits()
    pixels = np.rint(digits["images"] * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    digests = np.array([sample_digest(image) for image in pixels], dtype=DIGEST_DTYPE)
    return labelled_images(pixels, digits["target"].astype(np.int64), digests, name=name, source=source)


BUILTINS: dict[str, Callable[[str, str], LabelledImages]] = {"digits": _digits}

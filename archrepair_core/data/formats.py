"""Load a dataset from a reference. The format is found by content through one table, never by the file's name."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from archrepair_core.data.images import (
    DIGEST_DTYPE,
    LabelledImages,
    SampleStream,
    labelled_images,
    sample_digest,
    store,
)
from archrepair_core.data.npz import read_npz
from archrepair_core.data.parquet import read_parquet
from archrepair_core.data.references import resolve_reference
from archrepair_core.errors import DatasetError

MAX_DATASET_BYTES = 64 * 2**30
# First bytes → reader of (file, max_bytes, resize).
Reader = Callable[[Path, int, tuple[int, int] | None], SampleStream]
FORMATS: dict[bytes, Reader] = {
    b"PK\x03\x04": lambda path, max_bytes, resize: read_npz(path, max_bytes=max_bytes),
    b"PAR1": lambda path, max_bytes, resize: read_parquet(path, max_bytes=max_bytes, resize=resize),
}
FORMAT_NAMES = {b"PK\x03\x04": "npz", b"PAR1": "parquet"}
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
    b"\x1f\x8b": "a gzip file",
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
) -> LabelledImages:
    """Load .npz, Parquet or a builtin; pixels go to a memory-mapped file in `work_dir`, so memory stays flat.

    `resize` (height, width) is applied where encoded images may differ in size. Raises DatasetError for anything that
    is not such a file, or unpacks to more than `max_bytes`.
    """
    found = resolve_reference(reference, uploads)
    if not isinstance(found, Path):
        return BUILTINS[found.name](name, reference)
    samples = _reader(found)(found, max_bytes, resize)
    return store(samples, name=name, source=reference, work_dir=work_dir)


def format_of(path: Path) -> str:
    """The name of a format that can be read, by the first bytes."""
    with path.open("rb") as file:
        head = file.read(16)
    return next((name for magic, name in FORMAT_NAMES.items() if head.startswith(magic)), "unknown")


def _reader(path: Path) -> Reader:
    with path.open("rb") as file:
        head = file.read(16)
    for magic, reader in FORMATS.items():
        if head.startswith(magic):
            return reader
    raise DatasetError(
        "format_unknown",
        f"the file is neither .npz nor Parquet: it {_describe(head)}",
        hint="send .npz with 'images' and 'labels', or Parquet with the columns 'image' and 'label'",
    )


def _describe(head: bytes) -> str:
    if not head:
        return "is empty"
    known = [words for magic, words in OTHER_FORMATS.items() if head.startswith(magic)]
    return f"looks like {known[0]}" if known else f"begins with {head!r}"


def _digits(name: str, source: str) -> LabelledImages:
    from sklearn.datasets import load_digits  # a second of import that only this dataset needs

    digits = load_digits()
    pixels = np.rint(digits["images"] * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    digests = np.array([sample_digest(image) for image in pixels], dtype=DIGEST_DTYPE)
    return labelled_images(pixels, digits["target"].astype(np.int64), digests, name=name, source=source)


BUILTINS: dict[str, Callable[[str, str], LabelledImages]] = {"digits": _digits}

"""Read an archive of images: which of four layouts it has is found by what is in it.

- arrays: `images.npy` and `labels.npy`, as numpy.savez writes them, or one other array beside `labels.npy`, as
  CIFAR-10-C comes;
- a manifest: images, and one CSV file with a column of their paths and one of labels;
- samples (WebDataset): an image and its label share a name, `000017.jpg` and `000017.cls` or `000017.json`;
- class folders (torchvision's ImageFolder): the outermost folder in which the images differ is the class.

Images that stand in no folder, or all in one that is no class, are a set without labels.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from archrepair_core.data.archives import Member, walk
from archrepair_core.data.arrays import ArrayFile, read_arrays
from archrepair_core.data.columns import ColumnBuilder, check_columns, encode_column
from archrepair_core.data.encoded import BATCH_BYTES, EncodedImage, EncodedImages, decode_images
from archrepair_core.data.images import SampleStream, check_count, no_labels
from archrepair_core.data.labels import ClassNames, labels_of_words
from archrepair_core.errors import DatasetError

IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "bmp"})
LABEL_SUFFIXES = ("cls", "json")
# The names by which a manifest may call its columns, and by which a .json beside an image may call its label.
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")
LABEL_COLUMNS = ("label", "class", "cls", "target")
MAX_LISTED = 20


@dataclass
class Survey:
    """What one walk through the archive has found. Of images only what tells the layout is kept, not their names."""

    arrays: dict[str, int] = field(default_factory=dict)
    manifests: list[PurePosixPath] = field(default_factory=list)
    num_images: int = 0
    num_labels: int = 0
    # Folders that hold all images, the outermost first.
    common: tuple[str, ...] | None = None
    others: list[str] = field(default_factory=list)

    def see(self, member: Member) -> None:
        """Take one file into account."""
        if member.suffix in IMAGE_SUFFIXES:
            self.num_images += 1
            folders = member.path.parts[:-1]
            self.common = folders if self.common is None else tuple(_shared(self.common, folders))
        elif member.suffix == "npy":
            self.arrays[str(member.path)] = member.size
        elif member.suffix == "csv":
            self.manifests.append(member.path)
        elif member.suffix in LABEL_SUFFIXES:
            self.num_labels += 1
        if member.suffix not in IMAGE_SUFFIXES and len(self.others) < MAX_LISTED:
            self.others.append(str(member.path))


def _shared(first: Iterable[str], second: Iterable[str]) -> Iterator[str]:
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one


def read_archive(
    path: Path,
    *,
    max_bytes: int,
    resize: tuple[int, int] | None = None,
    class_names: ClassNames = None,
    columns: Sequence[str] = (),
) -> SampleStream:
    """Stream the samples of a zip or tar archive, in its order. Raises DatasetError for one that holds none."""
    walked = partial(walk, path, max_bytes=max_bytes)
    survey = Survey()
    for member in walked():
        survey.see(member)
    if survey.num_images == 0:
        return _read_arrays(survey, walked, max_bytes=max_bytes, columns=columns)
    check_count(survey.num_images)
    if len(survey.manifests) == 1:
        encoded = _by_manifest(survey, walked, class_names, columns)
    elif survey.num_labels:
        encoded = _by_name(walked, class_names, columns)
    else:
        check_columns(columns, ())
        encoded = _by_folder(survey, walked, class_names)
    return decode_images(encoded, max_bytes=max_bytes, resize=resize)


Walk = Callable[[], Iterator[Member]]


def _read_arrays(survey: Survey, walked: Walk, *, max_bytes: int, columns: Sequence[str]) -> SampleStream:
    names = {PurePosixPath(path).stem: path for path in survey.arrays}
    others = sorted(names.keys() - {"labels"})
    if "images" not in names and (len(others) != 1 or "labels" not in names):
        found = ", ".join([*sorted(names), *survey.others][:MAX_LISTED]) or "nothing"
        raise DatasetError(
            "key_missing",
            f"the archive has neither images nor an array 'images'; it holds: {found}",
            hint="save arrays with numpy.savez(path, images=…, labels=…), or send PNG or JPEG files in class folders",
        )
    pixels = "images" if "images" in names else others[0]
    check_columns(columns, names.keys() - {pixels})

    def file_of(key: str) -> ArrayFile:
        return ArrayFile(key, survey.arrays[names[key]], partial(_opened, walked, names[key]))

    return read_arrays(
        file_of(pixels),
        file_of("labels") if "labels" in names else None,
        max_bytes=max_bytes,
        columns={name: file_of(name) for name in columns},
    )


@contextmanager
def _opened(walked: Walk, path: str) -> Iterator[IO[bytes]]:
    with closing(walked()) as members:  # type: ignore[type-var]  # a generator
        member = next(member for member in members if str(member.path) == path)
        with member.open() as stream:
            yield stream


def _batches(walked: Walk, wanted: Callable[[PurePosixPath], bool]) -> Iterator[list[EncodedImage]]:
    batch, size = list[EncodedImage](), 0
    for member in walked():
        if member.suffix in IMAGE_SUFFIXES and wanted(member.path):
            batch.append(EncodedImage(repr(str(member.path)), member.read()))
            size += member.size
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _by_folder(survey: Survey, walked: Walk, class_names: ClassNames) -> EncodedImages:
    common = survey.common or ()
    words: list[str | None] = [
        _class_folder(member.path, common) for member in walked() if member.suffix in IMAGE_SUFFIXES
    ]
    named = [word for word in words if word is not None]
    if not named and common and _is_class(common[-1], class_names):
        named = [common[-1]] * len(words)
    if named and len(named) < len(words):
        raise DatasetError(
            "folders_mixed",
            f"{len(words) - len(named)} of {len(words)} images stand beside the class folders, not in one",
            hint="put every image into the folder of its class, or all into one folder for a set without labels",
        )
    labels, names = labels_of_words(named, class_names, of="class folders") if named else (no_labels(len(words)), None)
    return EncodedImages(partial(_batches, walked, lambda _: True), labels, "image_folder", names)


def _class_folder(path: PurePosixPath, common: tuple[str, ...]) -> str | None:
    folders = path.parts[len(common) : -1]
    return folders[0] if folders else None


def _is_class(folder: str, class_names: ClassNames) -> bool:
    named = class_names is not None and class_names != "as_found" and folder in class_names
    return named or (folder.isdecimal() and folder.isascii())


def _by_manifest(survey: Survey, walked: Walk, class_names: ClassNames, columns: Sequence[str]) -> EncodedImages:
    place = survey.manifests[0]
    with closing(walked()) as members:  # type: ignore[type-var]  # a generator
        content = next(member for member in members if member.path == place).read()
    rows = _manifest_rows(content, place, columns)
    listed = [member.path for member in walked() if member.suffix in IMAGE_SUFFIXES and member.path in rows]
    if missing := rows.keys() - set(listed):
        example = sorted(map(str, missing))[0]
        raise DatasetError(
            "manifest_missing",
            f"{len(missing)} images that {str(place)!r} lists are not in the archive, e.g. {example!r}",
            hint="paths are relative to the folder of the manifest",
        )
    words = [rows[path][0] for path in listed]
    given = [word for word in words if word]
    if given and len(given) < len(words):
        path = next(path for path in listed if not rows[path][0])
        raise DatasetError("label_missing", f"{str(path)!r} has no label in {str(place)!r}", hint="give all or none")
    labels, names = labels_of_words(given, class_names) if given else (no_labels(len(words)), None)
    metadata = {
        name: encode_column(name, (rows[path][1 + number] for path in listed)) for number, name in enumerate(columns)
    }
    return EncodedImages(partial(_batches, walked, rows.__contains__), labels, "manifest", names, metadata)


def _manifest_rows(content: bytes, place: PurePosixPath, asked: Sequence[str]) -> dict[PurePosixPath, tuple[str, ...]]:
    """Path in the archive to label, which is empty where there is none, and the values of the columns asked for."""
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), strict=True)
        columns = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
        path_column = next((columns[name] for name in PATH_COLUMNS if name in columns), None)
        label_column = next((columns[name] for name in LABEL_COLUMNS if name in columns), None)
        if path_column is None:
            raise DatasetError(
                "column_missing",
                f"{str(place)!r} has no column of paths; it has: {', '.join(columns) or 'none'}",
                hint=f"call it {PATH_COLUMNS[0]!r}, and the column of labels {LABEL_COLUMNS[0]!r}",
            )
        titles = {(name or "").strip(): name for name in rows.fieldnames or ()}
        check_columns(asked, titles.keys() - {path_column.strip()})
        found: dict[PurePosixPath, tuple[str, ...]] = {}
        for row in rows:
            path = place.parent / (row[path_column] or "").strip()
            if path in found:
                raise DatasetError(
                    "manifest_twice", f"{str(place)!r} lists {str(path)!r} twice", hint="list every image once"
                )
            label = (row[label_column] or "").strip() if label_column else ""
            # Interned: what many rows say is kept once.
            found[path] = (label, *(sys.intern((row[titles[name]] or "").strip()) for name in asked))
            check_count(len(found))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            "manifest_broken", f"{str(place)!r} cannot be read: {error}", hint="write UTF-8 with a line of column names"
        ) from error
    check_count(len(found))
    return found


def _by_name(walked: Walk, class_names: ClassNames, columns: Sequence[str]) -> EncodedImages:
    """Files of one sample stand one after the other, in any order, as WebDataset wants it."""
    words: list[str] = []
    keys: set[str] = set()
    builders = {name: ColumnBuilder(name) for name in columns}
    for sample, members in _samples(walked, with_metadata=bool(columns)):
        if members.image and members.label is None:
            raise DatasetError(
                "label_missing",
                f"{sample!r} has an image and no label beside it",
                hint=f"put a {sample}.cls with the number of the class beside each image, or beside none",
            )
        if members.image:
            words.append(members.label or "")
            check_count(len(words))
            for name, builder in builders.items():
                builder.add(members.metadata.get(name))
            keys |= {name for name in members.metadata if name in builders or len(keys) < MAX_LISTED}
    check_columns(columns, keys)
    labels, names = labels_of_words(words, class_names)
    metadata = {name: builder.column() for name, builder in builders.items()}
    return EncodedImages(partial(_batches, walked, lambda _: True), labels, "webdataset", names, metadata)


@dataclass
class _Sample:
    image: bool = False
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def _samples(walked: Walk, *, with_metadata: bool) -> Iterator[tuple[str, _Sample]]:
    before: str | None = None
    sample = _Sample()
    for member in walked():
        name = str(member.path.with_name(member.path.name.partition(".")[0]))
        if name != before and before is not None:
            yield before, sample
        sample = sample if name == before else _Sample()
        before = name
        if member.suffix in IMAGE_SUFFIXES:
            if sample.image:
                raise DatasetError("several_images", f"{name!r} has several images", hint="one image a sample")
            sample.image = True
        elif member.suffix in LABEL_SUFFIXES and (sample.label is None or with_metadata):
            said = _said_in(member)
            label = said if member.suffix == "cls" else _label_of(said)
            sample.label = label if sample.label is None else sample.label
            sample.metadata = said if isinstance(said, dict) else sample.metadata
    if before is not None:
        yield before, sample


def _said_in(member: Member) -> Any:
    """The text of a .cls, or what a .json says."""
    try:
        text = member.read().decode()
        return text.strip() if member.suffix == "cls" else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(
            "label_broken",
            f"{str(member.path)!r} cannot be read: {error}",
            hint="a .cls holds the number or the name of the class, a .json an object with 'label'",
        ) from error


def _label_of(said: Any) -> str | None:
    """What a .json says of the class; None where it speaks of something else."""
    found = [said[key] for key in LABEL_COLUMNS if key in said] if isinstance(said, dict) else []
    return str(found[0]) if found and isinstance(found[0], str | int) and not isinstance(found[0], bool) else None

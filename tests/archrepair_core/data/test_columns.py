"""Metadata beside images: the same columns from every format that has any."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from archrepair_core.data.columns import MAX_VALUES, encode_column
from archrepair_core.data.formats import load_dataset
from archrepair_core.errors import DatasetError

HOURS = ["day", "night", None, "day", "dusk", "night"]
INDOORS = [True, False, True, True, False, False]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
LABELS = [0, 1, 0, 1, 0, 1]


def png(pixels):
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png")
    return written.getvalue()


def as_npz(path):
    hours = np.array([hour or "" for hour in HOURS])
    np.savez(path, images=PIXELS, labels=np.array(LABELS), hour=hours, indoors=np.array(INDOORS))


def as_parquet(path):
    columns = {"image": [png(image) for image in PIXELS], "label": LABELS, "hour": HOURS, "indoors": INDOORS}
    pq.write_table(pa.table(columns), path)


def as_manifest(path):
    rows = [f"{number}.png,{label},{hour or ''},{str(indoors).lower()}"
            for number, (label, hour, indoors) in enumerate(zip(LABELS, HOURS, INDOORS, strict=True))]  # fmt: skip
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("list.csv", "\n".join(["path,label, hour ,indoors", *reversed(rows)]))
        for number, image in enumerate(PIXELS):
            file.writestr(f"{number}.png", png(image))


def as_webdataset(path):
    with tarfile.open(path, "w") as file:
        for number, image in enumerate(PIXELS):
            said = {"hour": HOURS[number], "indoors": INDOORS[number], "camera": [1, 2]}
            contents = {"cls": str(LABELS[number]).encode(), "json": json.dumps(said).encode(), "png": png(image)}
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


WRITERS = {"npz": as_npz, "parquet": as_parquet, "manifest": as_manifest, "webdataset": as_webdataset}


@pytest.fixture(params=WRITERS)
def load(request, tmp_path):
    path = tmp_path / "data.npz"
    WRITERS[request.param](path)

    def load_with(*columns):
        return load_dataset("upload:x", {"upload:x": path}, name="test", work_dir=tmp_path, columns=columns)

    return load_with


def values_of(column):
    return [column.values[code] for code in column.codes]


def test_every_format_gives_the_columns_that_are_asked_for(load):
    found = load("hour", "indoors")
    assert list(found.columns) == ["hour", "indoors"]
    assert values_of(found.columns["hour"]) == HOURS
    assert values_of(found.columns["indoors"]) == [str(indoors).lower() for indoors in INDOORS]
    assert found.labels.tolist() == LABELS
    assert load().columns == {}
    assert load().digest == found.digest, "metadata is no content"


def test_a_part_takes_its_columns_along_and_gives_them_back(load):
    whole = load("hour")
    some, rest = whole.subset(np.array([4, 1])), whole.subset(np.array([0, 2, 3, 5]), name="rest")
    assert values_of(some.columns["hour"]) == ["dusk", "night"]
    assert values_of(some.joined(rest).columns["hour"]) == ["dusk", "night", "day", None, "day", "night"]


def test_a_column_that_is_not_there_is_refused_with_those_that_are(load):
    with pytest.raises(DatasetError) as caught:
        load("hour", "hours")
    assert caught.value.code == "dataset.column_unknown"
    assert "'hours'" in caught.value.detail
    assert "'hour'" in caught.value.detail.partition("it has")[2]


@pytest.mark.parametrize("reference", ["builtin:digits", "upload:folders"])
def test_data_without_metadata_has_no_columns(tmp_path, reference):
    with zipfile.ZipFile(tmp_path / "folders.zip", "w") as file:
        for number, image in enumerate(PIXELS):
            file.writestr(f"{LABELS[number]}/{number}.png", png(image))
    files = {"upload:folders": tmp_path / "folders.zip"}
    with pytest.raises(DatasetError, match="it has none"):
        load_dataset(reference, files, name="test", work_dir=tmp_path, columns=["hour"])


@pytest.mark.parametrize(
    ("write", "column", "said"),
    [
        (as_webdataset, "camera", "holds a list, not one value"),
        (as_parquet, "place", "holds list<element: int64>|holds list<item: int64>"),
    ],
)
def test_what_is_not_one_value_per_image_is_refused(tmp_path, write, column, said):
    write(tmp_path / "data")
    if write is as_parquet:
        table = pq.read_table(tmp_path / "data")
        pq.write_table(table.append_column("place", pa.array([[1, 2]] * len(table))), tmp_path / "data")
    with pytest.raises(DatasetError, match=said):
        load_dataset("upload:x", {"upload:x": tmp_path / "data"}, name="x", work_dir=tmp_path, columns=[column])


def test_a_column_stays_small_however_many_samples_share_it():
    column = encode_column("hour", (f"{row % 24}h" + "x" * 300 for row in range(50_000)))
    assert (column.codes.nbytes, len(column.values), len(column.values[3])) == (200_000, 24, 200)
    with pytest.raises(DatasetError, match=rf"more than {MAX_VALUES} different values in the first {MAX_VALUES + 1} "):
        encode_column("name", (str(row) for row in range(10**9)))

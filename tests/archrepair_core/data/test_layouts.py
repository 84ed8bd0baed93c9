"""The same images from archives of every layout, and archives that are wrong in every way we could think of."""

import contextlib
import io
import itertools
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from archrepair_core.data import archives
from archrepair_core.data.formats import load_dataset
from archrepair_core.errors import DatasetError
from tests.archrepair_core.data.memory import growth_of_loading_mib
from tests.archrepair_core.data.packed import as_tar, as_zip, npy, png

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 10, 10])
NAMES = [f"name {number}" for number in range(11)]
COMPRESSIONS = ("", "gz", "bz2", "xz")


ENCODED = [png(pixels) for pixels in PIXELS]
SAMPLES = list(zip(range(len(LABELS)), ENCODED, LABELS.tolist(), strict=True))
LAYOUTS = {
    "folders": [(f"{label}/{row}.png", image) for row, image, label in SAMPLES],
    "folders under folders": [(f"data/train/{label}/more/{row}.png", image) for row, image, label in SAMPLES],
    "folders with words": [(f"{NAMES[label]}/{row}.png", image) for row, image, label in SAMPLES],
    "webdataset": [
        file for row, image, label in SAMPLES
        for file in ((f"{row:06}.png", image), (f"{row:06}.cls", str(label).encode()))
    ],
    "webdataset with json": [
        file for row, image, label in SAMPLES
        for file in ((f"a/{row:06}.json", json.dumps({"label": NAMES[label]}).encode()), (f"a/{row:06}.png", image))
    ],
    "manifest": [
        ("set/index.csv", "file_name,Label\n" + "".join(f"i/{row}.png,{label}\n" for row, _, label in SAMPLES)),
        *((f"set/i/{row}.png", image) for row, image, _ in SAMPLES),
        ("set/i/not-listed.png", ENCODED[0]),
    ],
    "arrays": [("images.npy", npy(PIXELS)), ("labels.npy", npy(LABELS))],
    "arrays as CIFAR-10-C has them": [("C/fog.npy", npy(PIXELS)), ("C/labels.npy", npy(LABELS))],
}  # fmt: skip


def with_bytes(files):
    return [(name, content if isinstance(content, bytes) else content.encode()) for name, content in files]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("layouts")

    def load_bytes(content, **options):
        file = work_dir / "file"
        file.write_bytes(content)
        return load_dataset("upload:x", {"upload:x": file}, name="x", work_dir=work_dir, **options)

    return load_bytes


@pytest.fixture(scope="module")
def from_npz(load):
    buffer = io.BytesIO()
    np.savez(buffer, images=PIXELS, labels=LABELS)
    return load(buffer.getvalue())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_every_layout_gives_the_same_samples(load, from_npz, layout, pack):
    loaded = load(pack(with_bytes(LAYOUTS[layout])), class_names=NAMES if layout in WITH_WORDS else None)
    np.testing.assert_array_equal(loaded.images[:], PIXELS)
    assert loaded.labels.tolist() == LABELS.tolist()
    assert loaded.digest == from_npz.digest


WITH_WORDS = {"folders with words", "webdataset with json"}


def test_parquet_with_words_is_the_same_too(load, from_npz):
    buffer = io.BytesIO()
    table = pa.table({"image": [{"bytes": image} for image in ENCODED], "label": [NAMES[label] for label in LABELS]})
    pq.write_table(table, buffer)
    assert load(buffer.getvalue(), class_names=NAMES).digest == from_npz.digest


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tar_may_be_compressed(load, from_npz, compression):
    assert load(as_tar(LAYOUTS["folders"], compression)).digest == from_npz.digest


def test_what_file_managers_leave_behind_is_no_data(load, from_npz):
    junk = [("__MACOSX/0/._0.png", b"x"), ("0/.DS_Store", b"x"), ("1/._2.png", b"x"), ("Thumbs.db", b"x")]
    assert load(as_zip(junk + LAYOUTS["folders"])).digest == from_npz.digest


@pytest.mark.parametrize("folder", ["", "images/", "a/b/"])
def test_images_in_no_class_folder_have_no_labels(load, folder):
    loaded = load(as_tar([(f"{folder}{row}.png", image) for row, image, _ in SAMPLES]))
    assert not loaded.labelled
    assert loaded.format == "image_folder"


def test_a_manifest_without_labels_chooses_images(load):
    manifest = ("list.csv", b"path\n1.png\n3.png\n")
    loaded = load(as_zip([manifest, *((f"{row}.png", image) for row, image, _ in SAMPLES)]))
    np.testing.assert_array_equal(loaded.images[:], PIXELS[[1, 3]])
    assert not loaded.labelled


def test_one_class_folder_is_a_class(load):
    assert load(as_zip([("data/7/a.png", ENCODED[0])])).labels.tolist() == [7]
    assert load(as_zip([("data/cat/a.png", ENCODED[0])]), class_names=["dog", "cat"]).labels.tolist() == [1]


def test_words_are_counted_where_no_model_is_asked(load):
    loaded = load(as_zip([("dog/a.png", ENCODED[0]), ("cat/b.png", ENCODED[1])]), class_names="as_found")
    assert (loaded.labels.tolist(), loaded.class_names) == ([1, 0], ("cat", "dog"))


def test_sizes_may_differ_when_the_spec_resizes(load):
    files = [("0/a.png", png(PIXELS[0])), ("0/b.png", png(PIXELS[1][:4]))]
    with pytest.raises(DatasetError, match=r"'0/b.png' is 4×8 .* where '0/a.png' is 6×8"):
        load(as_zip(files))
    assert load(as_zip(files), resize=(5, 5)).images.shape == (2, 5, 5, 3)


def many(count, broken, side=8):
    """As many images in two classes, of which some are cut off."""
    random = np.random.default_rng(0)
    whole = [png(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]
    return [(f"{row % 2}/{row:03}.png", image[:-40] if row in broken else image) for row, image in enumerate(whole)]


@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_a_broken_image_in_a_hundred_is_skipped_and_named(load, pack):
    loaded, whole = load(pack(many(200, broken=(0, 77)))), load(pack(many(200, broken=())))
    assert [(image.row, image.name) for image in loaded.skipped] == [(0, "'0/000.png'"), (77, "'1/077.png'")]
    assert all(image.reason for image in loaded.skipped)
    rest = whole.subset(np.setdiff1d(np.arange(200), [0, 77]))
    np.testing.assert_array_equal(loaded.images[:], rest.images[:])
    assert (loaded.digest, loaded.images.rows.tolist()) == (rest.digest, rest.images.rows.tolist())


def test_one_more_is_an_error_that_names_the_first(load):
    with pytest.raises(DatasetError, match=r"more than the 2 of 200 .*'0/000.png'.*'1/003.png'.*'1/005.png'") as caught:
        load(as_zip(many(200, broken=(0, 3, 5, 9))))
    assert caught.value.code == "dataset.image_broken"


def test_a_cut_part_does_not_repeat_what_was_skipped(load):
    loaded = load(as_zip(many(100, broken=(4,))))
    rows = np.arange(10)
    assert len(loaded.subset(rows).skipped) == 1
    assert loaded.subset(rows, name="test").skipped == ()


def test_many_threads_decode_as_one_does(load, monkeypatch):
    files = many(120, broken=(7,), side=80)
    one, several = (_with_cores(load, monkeypatch, as_zip(files), cores) for cores in (1, 4))
    np.testing.assert_array_equal(one.images[:], several.images[:])
    assert (one.digest, one.skipped) == (several.digest, several.skipped)


def _with_cores(load, monkeypatch, content, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    return load(content)


TWO = [("0/a.png", ENCODED[0]), ("1/b.png", ENCODED[1])]
BROKEN = {
    "only text": ([("readme.txt", b"hello")], "key_missing", "readme.txt"),
    "too many arrays": ([("a.npy", b"1"), ("b.npy", b"1"), ("labels.npy", b"1")], "key_missing", "a, b, labels"),
    "arrays that are none": ([("images.npy", b"1"), ("labels.npy", b"1")], "archive_broken", "arrays cannot be read"),
    "words": ([("cat/a.png", ENCODED[0]), ("dog/b.png", ENCODED[1])], "class_names_missing", "'cat', 'dog'"),
    "an image beside the folders": ([*TWO, ("c.png", ENCODED[2])], "folders_mixed", "1 of 3 images"),
    "a class too large": ([*TWO, (f"{2**40}/c.png", ENCODED[2])], "label_too_large", "row 2"),
    "an image that is none": ([*TWO, ("1/c.png", b"no image")], "image_broken", "'1/c.png'"),
    "half an image": ([*TWO, ("1/c.png", ENCODED[2][:-40])], "image_broken", "'1/c.png'"),
    "an image of 16 bits": ([("0/a.png", png(np.zeros((4, 4), np.uint16)))], "image_mode", "'0/a.png'"),
    "a label missing": ([("0.png", ENCODED[0]), ("0.cls", b"1"), ("1.png", ENCODED[1])], "label_missing", "'1'"),
    "a label that is none": ([("0.png", ENCODED[0]), ("0.cls", b"\xff\xfe")], "label_broken", "'0.cls'"),
    "json that is none": ([("0.png", ENCODED[0]), ("0.json", b"{")], "label_broken", "'0.json'"),
    "json of something else": ([("0.png", ENCODED[0]), ("0.json", b"[1]")], "label_missing", "'0'"),
    "two images of one name": (
        [("0.png", ENCODED[0]), ("0.jpg", ENCODED[0]), ("0.cls", b"1")], "several_images", "'0' has several"
    ),
    "a manifest without paths": ([("l.csv", b"a,b\n1,2\n"), *TWO], "column_missing", "it has: a, b"),
    "a manifest of what is not there": ([("l.csv", b"path,label\n0/x.png,1\n"), *TWO], "manifest_missing", "0/x.png"),
    "a manifest that is empty": ([("l.csv", b"path,label\n"), *TWO], "empty", "no images"),
    "a manifest with a gap": ([("l.csv", b"path,label\n0/a.png,1\n1/b.png,\n"), *TWO], "label_missing", "'1/b.png'"),
    "a manifest with a line twice": ([("l.csv", b"path,label\n0/a.png,1\n0/a.png,2\n"), *TWO], "manifest_twice", "0/a"),
    "a manifest in another encoding": ([("l.csv", b"\xff\xfep\x00"), *TWO], "manifest_broken", "'l.csv'"),
    "a class that cannot be printed": ([("a\x07/a.png", ENCODED[0]), *TWO], "class_name_unusable", r"'a\x07'"),
}  # fmt: skip


@pytest.mark.parametrize("pack", [as_zip, as_tar])
@pytest.mark.parametrize(("files", "code", "said"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_archive_says_what_is_wrong_and_where(load, pack, files, code, said):
    with pytest.raises(DatasetError) as caught:
        load(pack(files))
    assert caught.value.code == f"dataset.{code}"
    assert said in caught.value.detail
    assert caught.value.hint


def test_a_word_that_is_not_among_the_names_is_named(load):
    with pytest.raises(DatasetError, match=r"'Cat' are not among model\.class_names, which are 'cat', 'dog'"):
        load(as_zip([("Cat/a.png", ENCODED[0]), ("dog/b.png", ENCODED[0])]), class_names=["cat", "dog"])


def test_links_lead_nowhere(load):
    buffer = io.BytesIO(as_tar(TWO))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("1/link.png")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    assert len(load(buffer.getvalue())) == 2


def test_more_than_is_allowed_is_refused_before_it_is_read(load, monkeypatch):
    with pytest.raises(DatasetError, match="more than the 100 bytes allowed"):
        load(as_tar(TWO, "gz"), max_bytes=100)
    with pytest.raises(DatasetError, match=r"more than 200 times its size"):
        load(as_zip([*TWO, ("1/zeros.png", bytes(100 << 20))]))
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 2000)
    with pytest.raises(DatasetError, match=r"'1/large.png' in the archive has 3000 bytes"):
        load(as_tar([*TWO, ("1/large.png", bytes(3000))]))


def test_a_header_that_claims_gigabytes_is_not_believed(load, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x" * 3000)
        archive.addfile(info)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(DatasetError, match="a header says"):
        load(buffer.getvalue())


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_tar_that_is_cut_off_is_never_a_smaller_one(load, compression, cut):
    whole = as_tar(LAYOUTS["folders"], compression)
    end = len(whole.rstrip(b"\0")) + 100 if not compression else len(whole)
    with pytest.raises(DatasetError) as caught:
        load(whole[: int(cut * end)])
    assert caught.value.code in ("dataset.archive_broken", "dataset.image_broken")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", ["folders", "webdataset"])
def test_shards_one_after_the_other_are_one_archive(load, from_npz, layout, compression):
    files = with_bytes(LAYOUTS[layout])
    cuts = [0, 6, 8, len(files)]
    shards = [as_tar(files[start:stop], compression) for start, stop in itertools.pairwise(cuts)]
    assert load(b"".join(shards)).digest == from_npz.digest
    cut = b"".join(shards[:2]) + shards[2][: len(shards[2]) // 2 if compression else 700]
    with pytest.raises(DatasetError) as caught:
        load(cut)
    assert caught.value.code in ("dataset.archive_broken", "dataset.image_broken")


def test_what_follows_an_archive_and_is_none_is_not_passed_over(load):
    with pytest.raises(DatasetError, match="cannot be read") as caught:
        load(as_tar(TWO) + b"no archive" * 100)
    assert caught.value.code == "dataset.archive_broken"


def test_a_tar_cut_between_two_files_is_never_a_smaller_one(load):
    whole = as_tar(TWO)
    second = whole.index(b"1/b.png")
    with pytest.raises(DatasetError, match="it has no end"):
        load(whole[:second])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("layout", ["folders", "webdataset", "manifest"])
@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_a_damaged_archive_loads_or_is_a_dataset_error(load, pack, layout, data):
    whole = pack(with_bytes(LAYOUTS[layout])[:6])
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetError):
        load(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_memory_does_not_grow_with_the_archive(tmp_path, pack):
    noise = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (256, 256, 3), np.uint8)).save(buffer, "BMP")
    file = tmp_path / "large"
    file.write_bytes(pack((f"{row % 3}/{row}.bmp", buffer.getvalue()) for row in range(700)))
    assert 700 * len(buffer.getvalue()) > 130e6
    assert growth_of_loading_mib(file) < 80

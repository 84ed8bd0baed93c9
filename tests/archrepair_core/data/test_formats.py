import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archrepair_core.data.formats import load_dataset
from archrepair_core.errors import DatasetError
from tests.archrepair_core.data.memory import growth_of_loading_mib
from tests.archrepair_core.data.packed import as_tar, as_zip, nested, npy, npz, parquet, png


@pytest.fixture(scope="module")
def load_bytes(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("data")

    def load(content):
        file = work_dir / "file"
        file.write_bytes(content)
        return load_dataset("upload:x", {"upload:x": file}, name="x", work_dir=work_dir)

    return load


def test_the_built_in_digits_are_real_handwriting_as_bytes(tmp_path):
    digits = load_dataset("builtin:digits", {}, name="repair", work_dir=tmp_path)
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.images[:].min() == 0
    assert digits.images[:].max() == 255
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.source == "builtin:digits"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n....", "looks like one PNG image"),
        (b"\x93NUMPY\x01\x00", "looks like a single .npy array"),
        (b"\x80\x04\x95", "looks like a pickle"),
        (b"PK\x05\x06" + bytes(18), "looks like an empty zip archive"),
        (b"a,b,c\n1,2,3\n", r"begins with b'a,b,c\n1,2,3\n'"),
    ],
)
def test_a_file_of_another_kind_is_named(load_bytes, content, said):
    with pytest.raises(DatasetError, match=r"neither \.npz, Parquet, zip nor tar") as caught:
        load_bytes(content)
    assert caught.value.code == "dataset.format_unknown"
    assert said in caught.value.detail


def as_samples(encoded, labels):
    return [file for row, (image, label) in enumerate(zip(encoded, labels, strict=True))
            for file in ((f"{row:06}.png", image), (f"{row:06}.cls", str(label).encode()))]  # fmt: skip


def as_manifest(encoded, labels):
    lines = "".join(f"{row}.png,{label}\n" for row, label in enumerate(labels))
    return [
        ("list.csv", f"path,label\n{lines}".encode()),
        *((f"{row}.png", image) for row, image in enumerate(encoded)),
    ]


PACKED = {
    "npz": lambda pixels, labels, _: npz(images=pixels, labels=labels),
    "pair of npy": lambda pixels, labels, _: as_zip([("x.npy", npy(pixels)), ("labels.npy", npy(labels))]),
    "structs": lambda _, labels, encoded: parquet({"image": [{"bytes": image} for image in encoded], "label": labels}),
    "lists": lambda pixels, labels, _: parquet({"image": nested(pixels), "label": labels}, row_group_size=2),
    "bytes": lambda _, labels, encoded: parquet({"image": encoded, "label": labels}, row_group_size=2),
    "folders": lambda _, labels, encoded: as_tar(
        [(f"{label}/{row}.png", image) for row, (image, label) in enumerate(zip(encoded, labels, strict=True))], "gz"
    ),
    "samples": lambda _, labels, encoded: as_tar(as_samples(encoded, labels)),
    "manifest": lambda _, labels, encoded: as_zip(as_manifest(encoded, labels)),
}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32),
)
def test_any_images_come_back_as_they_were_from_any_format(load_bytes, count, height, width, channels, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    labels = rng.integers(0, 12, count)
    encoded = [png(image if channels == 3 else image[..., 0]) for image in pixels]
    shown = pixels if channels == 3 else pixels[..., 0]  # what N×H×W×C means where C could be H is a rule of its own
    for name, pack in PACKED.items():
        if "np" in name and channels == 3 and height in (1, 2, 3, 4):
            continue  # channels first or last cannot be told apart
        loaded = load_bytes(pack(shown, labels, encoded))
        np.testing.assert_array_equal(loaded.images[:], pixels, err_msg=name)
        assert loaded.labels.tolist() == labels.tolist(), name
        assert loaded.labelled


@settings(max_examples=300, deadline=None)
@given(
    magic=st.sampled_from([b"", b"PK\x03\x04", b"PAR1", b"\x93NUMPY", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"]),
    rest=st.binary(max_size=300),
)
def test_arbitrary_bytes_are_a_dataset_error_and_nothing_else(load_bytes, magic, rest):
    with pytest.raises(DatasetError) as caught:
        load_bytes(magic + rest)
    assert caught.value.hint


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_npz_loads_or_is_a_dataset_error(load_bytes, data):
    whole = npz(images=np.zeros((5, 3, 3), np.uint8), labels=np.arange(5))
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetError):
        assert len(load_bytes(bytes(content))) == 5


def test_a_dataset_that_fails_half_way_leaves_no_file_behind(tmp_path):
    images = np.zeros((5, 3, 3))
    images[4, 1, 1] = np.nan
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(5))
    with pytest.raises(DatasetError, match="row 4"):
        load_dataset("upload:x", {"upload:x": tmp_path / "x.npz"}, name="x", work_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_the_digest_is_of_content_and_not_of_the_file(load_bytes):
    images, labels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), np.array([0, 1])
    digest = load_bytes(npz(images=images, labels=labels)).digest
    assert load_bytes(npz(images=images.transpose(0, 3, 1, 2), labels=labels.astype(np.uint8))).digest == digest
    assert load_bytes(npz(images=images, labels=labels[::-1])).digest != digest
    images[0, 0, 0, 0] += 1
    assert load_bytes(npz(images=images, labels=labels)).digest != digest


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path):
    file = tmp_path / "large.npz"
    np.savez(
        file, images=np.random.default_rng(0).integers(0, 256, (2000, 256, 256), np.uint8), labels=np.zeros(2000, int)
    )
    assert file.stat().st_size > 130e6
    assert growth_of_loading_mib(file) < 60

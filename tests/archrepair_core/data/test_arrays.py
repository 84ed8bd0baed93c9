import io
import zipfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archrepair_core.data.formats import load_dataset
from archrepair_core.errors import DatasetError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def load(path, *, work_dir, **limits):
    return load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=work_dir, **limits)


@pytest.fixture
def load_arrays(tmp_path):
    def save_and_load(save=np.savez, **arrays):
        save(tmp_path / "x.npz", **arrays)
        return load(tmp_path / "x.npz", work_dir=tmp_path)

    return save_and_load


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bytes_come_back_as_they_were_saved(load_arrays, save):
    loaded = load_arrays(save, images=IMAGES, labels=LABELS)
    np.testing.assert_array_equal(loaded.images[:], IMAGES)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    assert (loaded.images.dtype, loaded.labels.dtype) == (np.uint8, np.int64)
    assert isinstance(loaded.images.pixels, np.memmap)


@pytest.mark.parametrize("arrays", [{}, {"labels": np.full(6, -1)}])
def test_a_set_without_labels_is_told_apart(load_arrays, arrays):
    unlabelled = load_arrays(images=IMAGES, **arrays)
    assert (unlabelled.labelled, unlabelled.labels.tolist()) == (False, [-1] * 6)
    assert load_arrays(images=IMAGES, labels=LABELS).labelled


def test_many_chunks_come_back_in_order(load_arrays):
    images = np.random.default_rng(1).integers(0, 256, (300, 128, 129, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_arrays(images=images, labels=np.arange(300)).images[:], images)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ((6, 5, 7), (6, 5, 7, 1)),
        ((6, 5, 7, 3), (6, 5, 7, 3)),
        ((6, 3, 5, 7), (6, 5, 7, 3)),
        ((6, 1, 5, 7), (6, 5, 7, 1)),
        ((6, 5, 7, 4), (6, 5, 7, 4)),
        ((6, 3, 5, 1), (6, 3, 5, 1)),
        ((6, 3, 4, 4), (6, 4, 4, 3)),
        ((6, 4, 4, 3), (6, 4, 4, 3)),
        ((6, 4, 5, 7), (6, 5, 7, 4)),
        ((6, 12, 30, 31), (6, 30, 31, 12)),
        ((6, 30, 31, 12), (6, 30, 31, 12)),
    ],
)
def test_the_layout_follows_the_stated_rules(load_arrays, saved, expected):
    images = np.arange(np.prod(saved), dtype=np.float32).reshape(saved)
    loaded = load_arrays(images=images, labels=LABELS)
    assert loaded.images.shape == expected
    moved = np.moveaxis(images, 1, -1) if loaded.images.shape[1:] != saved[1:] and len(saved) == 4 else images
    np.testing.assert_array_equal(loaded.images[:], moved.reshape(expected))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_floats_become_float32_unchanged(load_arrays, dtype):
    images = np.linspace(-2, 2, 6 * 4 * 4).reshape(6, 4, 4).astype(dtype)
    loaded = load_arrays(images=images, labels=LABELS)
    assert loaded.images.dtype == np.float32
    np.testing.assert_array_equal(loaded.images[:][..., 0], images.astype(np.float32))


@pytest.mark.parametrize("dtype", ["i1", "<u2", ">i4", "<i8", "<u8"])
def test_small_integers_become_bytes(load_arrays, dtype):
    images = np.arange(96).reshape(6, 4, 4).astype(dtype)
    loaded = load_arrays(images=images, labels=LABELS.astype(dtype))
    assert loaded.images.dtype == np.uint8
    np.testing.assert_array_equal(loaded.images[:][..., 0], np.arange(96).reshape(6, 4, 4))
    np.testing.assert_array_equal(loaded.labels, LABELS)


def with_value(value, dtype):
    images = np.zeros((6, 4, 4), dtype)
    images[3, 1, 2] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "code", "said"),
    [
        ({"x": IMAGES, "y": LABELS}, "key_missing", "nor an array 'images'; it holds: x, y"),
        ({"images": IMAGES[0, 0], "labels": LABELS}, "images_shape", "(7, 3)"),
        ({"images": IMAGES[None], "labels": LABELS}, "images_shape", "(1, 6, 5, 7, 3)"),
        ({"images": np.uint8(3), "labels": LABELS}, "images_shape", "()"),
        ({"images": np.zeros((6, 8, 8, 8), np.uint8), "labels": LABELS}, "layout_ambiguous", "(6, 8, 8, 8)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "empty", "no images"),
        ({"images": IMAGES[:, :0], "labels": LABELS}, "empty", "0×7"),
        ({"images": np.zeros((6, 99, 99, 98), np.uint8), "labels": LABELS}, "image_too_large", "98 channels"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "length_mismatch", "6 images but 5 labels"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "labels_not_integer", "float64"),
        ({"images": IMAGES, "labels": LABELS > 0}, "labels_not_integer", "bool"),
        ({"images": IMAGES, "labels": LABELS.astype(str)}, "labels_not_integer", "<U21"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, "labels_shape", "(6, 1)"),
        ({"images": IMAGES, "labels": np.int64(3)}, "labels_shape", "()"),
        ({"images": IMAGES, "labels": LABELS - 1}, "label_negative", "label -1 in row 0"),
        ({"images": IMAGES, "labels": LABELS + 2**40}, "label_too_large", "row 0"),
        ({"images": IMAGES.astype(complex), "labels": LABELS}, "images_not_numeric", "complex128"),
        ({"images": IMAGES > 5, "labels": LABELS}, "images_not_numeric", "bool"),
        ({"images": IMAGES.astype(object), "labels": LABELS}, "object_array", "'images'"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "object_array", "'labels'"),
        ({"images": np.asfortranarray(IMAGES), "labels": LABELS}, "fortran_order", "'images'"),
        (
            {"images": with_value(300, np.int16), "labels": LABELS},
            "pixel_range",
            "row 3 has integer pixels from 0 to 300",
        ),
        (
            {"images": with_value(-1, np.int16), "labels": LABELS},
            "pixel_range",
            "row 3 has integer pixels from -1 to 0",
        ),
        ({"images": with_value(np.nan, np.float32), "labels": LABELS}, "pixel_not_finite", "row 3"),
        ({"images": with_value(1e300, np.float64), "labels": LABELS}, "pixel_not_finite", "row 3"),
    ],
)
def test_bad_arrays_say_what_is_wrong_and_what_to_do(load_arrays, arrays, code, said):
    with pytest.raises(DatasetError) as caught:
        load_arrays(**arrays)
    assert caught.value.code == f"dataset.{code}"
    assert said in caught.value.detail
    assert caught.value.hint


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_broken_not_short(tmp_path, kept):
    np.savez(tmp_path / "whole.npz", images=IMAGES, labels=LABELS)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DatasetError) as caught:
        load(tmp_path / "cut.npz", work_dir=tmp_path)
    assert caught.value.code == "dataset.archive_broken"


def test_a_flipped_pixel_bit_is_found_by_the_checksum(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[400] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="CRC"):
        load(tmp_path / "x.npz", work_dir=tmp_path)


def zip_of(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_with_header(header):
    encoded = header.encode("latin1", "replace")
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded


def test_a_bomb_is_refused_by_its_directory_before_it_is_unpacked(tmp_path):
    zeros = bytes(80 * 2**20)
    header = npy_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(zeros)}, 1, 1)}}")
    zip_of(tmp_path / "x.npz", {"images.npy": header + zeros, "labels.npy": npy(LABELS)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DatasetError, match="more than 200 times") as caught:
        load(tmp_path / "x.npz", work_dir=tmp_path)
    assert caught.value.code == "dataset.archive_bomb"
    assert not list(tmp_path.glob("*.pixels"))


def test_blank_images_that_compress_well_are_no_bomb(load_arrays):
    loaded = load_arrays(np.savez_compressed, images=np.zeros((50, 200, 200), np.uint8), labels=np.zeros(50, int))
    assert len(loaded) == 50


def test_the_cap_on_unpacked_bytes_is_the_callers(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    with pytest.raises(DatasetError) as caught:
        load(tmp_path / "x.npz", work_dir=tmp_path, max_bytes=500)
    assert caught.value.code == "dataset.too_large"
    assert "500" in caught.value.detail


def test_a_method_other_than_deflate_is_refused(tmp_path):
    zip_of(tmp_path / "x.npz", {"images.npy": npy(IMAGES), "labels.npy": npy(LABELS)}, zipfile.ZIP_LZMA)
    with pytest.raises(DatasetError) as caught:
        load(tmp_path / "x.npz", work_dir=tmp_path)
    assert caught.value.code == "dataset.archive_unsupported"


def test_an_encrypted_member_is_refused(tmp_path):
    zip_of(tmp_path / "x.npz", {"images.npy": npy(IMAGES), "labels.npy": npy(LABELS)})
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="encrypted"):
        load(tmp_path / "x.npz", work_dir=tmp_path)


def test_a_header_that_promises_more_than_the_member_holds_is_broken(tmp_path):
    header = npy_with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (999999999, 32, 32)}")
    zip_of(tmp_path / "x.npz", {"images.npy": header + b"abc", "labels.npy": npy(LABELS)})
    with pytest.raises(DatasetError, match="999999999"):
        load(tmp_path / "x.npz", work_dir=tmp_path)


@settings(max_examples=200, deadline=None)
@given(header=st.text(alphabet=st.characters(max_codepoint=255), max_size=80))
@example("-" * 60000 + "1")
@example("(" * 60000)
@example("-" * 9000 + "1")
@example("1+" * 4900 + "1")
@example("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 2)}")
@example("{'descr': ('|u1', (2,)), 'fortran_order': False, 'shape': (0, 2, 2)}")
@example("{'descr': 'V0', 'fortran_order': False, 'shape': (6, 2, 2)}")
@example("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 2)}")
def test_a_hostile_array_header_is_a_dataset_error(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "hostile.npz"
    zip_of(path, {"images.npy": npy_with_header(header), "labels.npy": npy(LABELS)})
    with pytest.raises(DatasetError) as caught:
        load(path, work_dir=path.parent)
    assert len(caught.value.detail) < 500

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archrepair_core.data import parquet as reader
from archrepair_core.data.formats import load_dataset
from archrepair_core.errors import DatasetError
from tests.archrepair_core.data.memory import growth_of_loading_mib
from tests.archrepair_core.data.packed import nested, npz, parquet

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1]
GREY = PIXELS[..., 0]


def lists(inner, *wrap):
    for one in wrap:
        inner = one(inner)
    return inner


def fixed(size):
    return lambda inner: pa.list_(inner, size)


@pytest.fixture(scope="module")
def load_bytes(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("data")

    def load(content, **options):
        file = work_dir / "file"
        file.write_bytes(content)
        return load_dataset("upload:x", {"upload:x": file}, name="x", work_dir=work_dir, **options)

    return load


@pytest.fixture
def load(load_bytes):
    return lambda image, label=None, **options: load_bytes(
        parquet({"image": image, "label": label or list(range(len(image)))}, row_group_size=2), **options
    )


LIST_TYPES = {
    "lists of uint8": lists(pa.uint8(), pa.list_, pa.list_, pa.list_),
    "as Python writes": None,
    "large lists": lists(pa.int16(), pa.large_list, pa.large_list, pa.large_list),
    "fixed lists": lists(pa.uint8(), fixed(3), fixed(8), fixed(6)),
    "fixed within lists": lists(pa.uint64(), fixed(3), pa.list_, pa.large_list),
}


@pytest.mark.parametrize("name", LIST_TYPES)
def test_lists_of_every_kind_are_what_the_arrays_are(load, load_bytes, name):
    image = pa.array(PIXELS.tolist(), LIST_TYPES[name])
    loaded = load(image, LABELS)
    np.testing.assert_array_equal(loaded.images[:], PIXELS)
    assert (loaded.images.dtype, loaded.labels.tolist(), loaded.format) == (np.uint8, LABELS, "parquet")
    assert loaded.digest == load_bytes(npz(images=PIXELS, labels=np.array(LABELS))).digest


@pytest.mark.parametrize("known", [False, True])
def test_lists_within_an_extension_are_read_whether_or_not_it_is_known(load_bytes, known):
    class Array3D(pa.ExtensionType):
        def __init__(self):
            super().__init__(LIST_TYPES["lists of uint8"], "tests.Array3D")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type, serialized):
            return cls()

    storage = pa.array(PIXELS.tolist(), LIST_TYPES["lists of uint8"])
    content = parquet({"image": pa.ExtensionArray.from_storage(Array3D(), storage)})
    if known:
        pa.register_extension_type(Array3D())
    try:
        loaded = load_bytes(content)
    finally:
        if known:
            pa.unregister_extension_type("tests.Array3D")
    np.testing.assert_array_equal(loaded.images[:], PIXELS)
    assert not loaded.labelled


def test_two_axes_are_grey_and_channels_may_come_first(load):
    np.testing.assert_array_equal(load(nested(GREY)).images[:], GREY[..., np.newaxis])
    np.testing.assert_array_equal(load(nested(PIXELS.transpose(0, 3, 1, 2))).images[:], PIXELS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32_unchanged(load, dtype):
    floats = (PIXELS / 255).astype(dtype)
    loaded = load(nested(floats))
    assert loaded.images.dtype == np.float32
    np.testing.assert_array_equal(loaded.images[:], floats.astype(np.float32))


def test_batches_and_row_groups_come_back_in_order(load_bytes, monkeypatch):
    monkeypatch.setattr(reader, "BATCH_PIXELS", 7 * 6 * 8)
    pixels = np.random.default_rng(1).integers(0, 256, (100, 6, 8), dtype=np.int64)
    loaded = load_bytes(parquet({"image": nested(pixels)}, row_group_size=30))
    np.testing.assert_array_equal(loaded.images[:][..., 0], pixels)


def test_a_column_whose_name_begins_alike_is_another(load_bytes):
    other = nested(GREY[:, :1])
    loaded = load_bytes(parquet({"image.small": other, "image": nested(PIXELS)}))
    np.testing.assert_array_equal(loaded.images[:], PIXELS)


def replaced(value, *place, images=PIXELS):
    """The lists of the images, with another value at one place of them."""
    changed = images.tolist()
    at = changed
    for index in place[:-1]:
        at = at[index]
    at[place[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("image", "code", "said"),
    [
        (replaced(256, 3, 1, 2, 0), "pixel_range", "row 3 has integer pixels from 0 to 256"),
        (replaced(-1, 4, 0, 0, 0), "pixel_range", "row 4 has integer pixels from -1 to"),
        (pa.array(replaced(float("nan"), 3, 1, 2, images=GREY)), "pixel_not_finite", "row 3"),
        (replaced(None, 3), "image_missing", "row 3 has no image"),
        (replaced(None, 0), "image_missing", "row 0 has no image"),
        (replaced(None, 3, 1), "pixel_missing", "row 3 has a null in place of a list"),
        (replaced(None, 3, 5, 2), "pixel_missing", "row 3 has a null in place of a list"),
        (replaced(None, 4, 5, 7, 2), "pixel_missing", "row 4 has a null in place of a pixel"),
        (replaced(None, 0, 5, 7, 2), "pixel_missing", "row 0 has a null in place of a pixel"),
        (pa.array(replaced(None, 3), LIST_TYPES["fixed lists"]), "image_missing", "row 3 has no image"),
        (pa.array(replaced(None, 3, 1), LIST_TYPES["fixed lists"]), "pixel_missing", "row 3"),
        (replaced(GREY[3, :, :7].tolist(), 3, images=GREY), "mixed_sizes", "row 3 has the shape 6×7 where row 0 has 6"),
        (replaced(PIXELS[4, :5].tolist(), 4), "mixed_sizes", "row 4 has the shape 5×8×3 where row 0 has 6×8×3"),
        (replaced([1, 2], 3, 1, images=GREY), "image_ragged", "row 3 is no rectangle: on axis 1 its lists have from 2"),
        (replaced([1], 0, 5, 7), "image_ragged", "row 0 is no rectangle: on axis 2 its lists have from 1 to 3"),
        (replaced([], 3), "empty", "row 3 has no pixels"),
        (replaced([[], []], 0), "empty", "row 0 has no pixels"),
        (nested(np.zeros((2, 8, 8, 8), np.uint8)), "layout_ambiguous", "(2, 8, 8, 8)"),
        (nested(PIXELS[:, None]), "image_column_type", "list<element: list<element: list<element: list"),
        (GREY[0].tolist(), "image_column_type", "list<element: int64>"),
        ([[["a"]]], "image_column_type", "string"),
        ([[[True]]], "image_column_type", "bool"),
    ],
)  # fmt: skip
def test_bad_lists_say_what_is_wrong_and_where(load, image, code, said):
    with pytest.raises(DatasetError) as caught:
        load(image)
    assert caught.value.code == f"dataset.{code}"
    assert said in caught.value.detail
    assert caught.value.hint


def test_two_columns_of_one_name_are_refused(tmp_path):
    images = nested(GREY)
    pq.write_table(pa.Table.from_arrays([images, images], ["image", "image"]), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match="2 columns 'image'"):
        load_dataset("upload:x", {"upload:x": tmp_path / "x.parquet"}, name="x", work_dir=tmp_path)


def test_the_cap_on_bytes_is_the_callers(load):
    with pytest.raises(DatasetError) as caught:
        load(nested(PIXELS), max_bytes=PIXELS.nbytes - 1)
    assert caught.value.code == "dataset.too_large"
    assert len(load(nested(PIXELS), max_bytes=PIXELS.nbytes)) == 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_row_group(tmp_path):
    pixels = np.tile(np.arange(128, dtype=np.int64), (1000, 128, 1))
    pq.write_table(pa.table({"image": nested(pixels)}), tmp_path / "x.parquet", row_group_size=1000)
    assert pixels.nbytes > 130e6
    assert growth_of_loading_mib(tmp_path / "x.parquet") < 90


WHOLE = parquet({"image": nested(PIXELS.astype(np.int64)), "label": LABELS}, row_group_size=3, compression="none")


@settings(max_examples=100, deadline=None)
@given(
    kept=st.integers(0, len(WHOLE) - 1),
    flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4),
)
def test_damaged_lists_load_or_are_a_dataset_error(load_bytes, kept, flips):
    content = bytearray(WHOLE if flips else WHOLE[:kept])
    for place, value in flips:
        content[place] = value
    with contextlib.suppress(DatasetError):
        assert len(load_bytes(bytes(content))) == len(LABELS)

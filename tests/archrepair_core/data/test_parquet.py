import contextlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from archrepair_core.data.formats import load_dataset
from archrepair_core.errors import DatasetError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1]


def encode(pixels, image_format="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, image_format, **options)
    return buffer.getvalue()


def as_struct(encoded):
    return [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(encoded)]


@pytest.fixture
def load_columns(tmp_path):
    def write_and_load(columns, row_group_size=2, **options):
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
        return load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=tmp_path, **options)

    return write_and_load


@pytest.fixture
def load_images(load_columns):
    return lambda encoded, **options: load_columns(
        {"image": as_struct(encoded), "label": list(range(len(encoded)))}, **options
    )


def test_lossless_images_come_back_as_they_were(load_columns):
    loaded = load_columns({"image": as_struct(map(encode, PIXELS)), "label": LABELS, "extra": list("abcde")})
    np.testing.assert_array_equal(loaded.images[:], PIXELS)
    assert loaded.labels.tolist() == LABELS
    assert isinstance(loaded.images.pixels, np.memmap)


@pytest.mark.parametrize("labels", [{}, {"label": [-1] * 5}, {"label": pa.nulls(5, pa.int64())}, {"label": [None] * 5}])
def test_a_set_without_labels_is_told_apart(load_columns, labels):
    loaded = load_columns({"image": as_struct(map(encode, PIXELS)), **labels})
    assert (loaded.labelled, loaded.labels.tolist()) == (False, [-1] * 5)


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_read_like_structs(load_columns, binary):
    encoded = [encode(pixels) for pixels in PIXELS]
    plain = load_columns({"image": pa.array(encoded, binary), "label": pa.array(LABELS, pa.uint8())})
    assert plain.digest == load_columns({"image": as_struct(encoded), "label": LABELS}).digest


def test_the_same_pixels_have_the_same_digest_from_npz(load_columns, tmp_path):
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
    from_npz = load_dataset("upload:x", {"upload:x": tmp_path / "x.npz"}, name="x", work_dir=tmp_path)
    assert from_npz.digest == load_columns({"image": as_struct(map(encode, PIXELS)), "label": LABELS}).digest


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "BMP"])
def test_other_formats_decode_as_pillow_does(load_images, image_format):
    encoded = encode(PIXELS[0], image_format)
    np.testing.assert_array_equal(
        load_images([encoded]).images[0], np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
    )


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_alone_have_one_channel(load_images, mode):
    loaded = load_images([encode(PIXELS[0], mode=mode)] * 3)
    assert loaded.images.shape == (3, 6, 8, 1)
    np.testing.assert_array_equal(
        loaded.images[2][..., 0], np.array(Image.fromarray(PIXELS[0]).convert(mode).convert("L"))
    )


def test_one_coloured_image_makes_the_grey_ones_before_it_rgb(load_images):
    loaded = load_images([encode(PIXELS[0], mode="L")] * 3 + [encode(PIXELS[1])])
    assert loaded.images.shape == (4, 6, 8, 3)
    np.testing.assert_array_equal(loaded.images[3], PIXELS[1])
    assert np.ptp(loaded.images[:3], axis=-1).max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_dropped(load_images, mode):
    options = {"transparency": b"\x00\x80"} if mode == "P" else {}
    assert load_images([encode(PIXELS[0], mode=mode, **options)]).images.shape == (1, 6, 8, 3)


def test_images_of_two_sizes_name_the_first_odd_one(load_images):
    with pytest.raises(DatasetError, match=r"row 3 is 6×7 .* where row 0 is 6×8") as caught:
        load_images([encode(pixels) for pixels in PIXELS[:3]] + [encode(PIXELS[3][:, :7])])
    assert caught.value.code == "dataset.mixed_sizes"
    assert "resize" in caught.value.hint


def test_resize_brings_images_of_two_sizes_to_one_but_digests_are_of_the_original(load_images):
    encoded = [encode(PIXELS[0]), encode(PIXELS[1][:4, :4])]
    loaded = load_images(encoded, resize=(4, 4))
    assert loaded.images.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(loaded.images[1], PIXELS[1][:4, :4])
    assert loaded.sample_digests[0] == load_images(encoded[:1]).sample_digests[0]


PNG = encode(PIXELS[0])


@pytest.mark.parametrize(
    ("columns", "code", "said"),
    [
        ({"img": as_struct([PNG]), "label": [0]}, "column_missing", "no column 'image'; it holds: img, label"),
        ({"image": ["a.png"], "label": [0]}, "image_column_type", "string"),
        ({"image": [{"path": "a.png"}], "label": [0]}, "image_column_type", "struct<path: string>"),
        ({"image": [[1, 2]], "label": [0]}, "image_column_type", "list"),
        ({"image": as_struct([PNG]), "label": [0.0]}, "labels_not_integer", "double"),
        ({"image": as_struct([PNG]), "label": ["cat"]}, "class_names_missing", "'cat'"),
        ({"image": as_struct([PNG]), "label": [True]}, "labels_not_integer", "bool"),
        ({"image": as_struct([PNG] * 3), "label": [0, 1, None]}, "label_missing", "row 2"),
        ({"image": as_struct([PNG] * 3), "label": [0, 1, -1]}, "label_negative", "label -1 in row 2"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "empty", "no images"),
        ({"image": as_struct([PNG, PNG, None]), "label": [0] * 3}, "image_bytes_missing", "row 2"),
        ({"image": as_struct([PNG, PNG, b""]), "label": [0] * 3}, "image_broken", "row 2"),
        ({"image": as_struct([PNG, PNG, PNG[:-30]]), "label": [0] * 3}, "image_broken", "row 2"),
        ({"image": as_struct([PNG, b"GIF89a" + PNG]), "label": [0] * 2}, "image_broken", "row 1"),
        ({"image": as_struct([PNG, b"not an image"]), "label": [0] * 2}, "image_broken", "row 1"),
    ],
)
def test_bad_tables_say_what_is_wrong_and_where(load_columns, columns, code, said):
    with pytest.raises(DatasetError) as caught:
        load_columns(columns)
    assert caught.value.code == f"dataset.{code}"
    assert said in caught.value.detail
    assert caught.value.hint


def test_sixteen_bit_images_are_refused_rather_than_clipped(load_images):
    with pytest.raises(DatasetError, match=r"row 1 .*I;16"):
        load_images([PNG, encode(np.full((6, 8), 40000, np.uint16))])


@pytest.mark.parametrize("side", [5000, 14000])
def test_a_decompression_bomb_is_refused_by_its_header(load_images, side):
    with pytest.raises(DatasetError) as caught:
        load_images([PNG, encode(np.zeros((side, side), bool))])
    assert caught.value.code in ("dataset.image_too_large", "dataset.image_broken")
    assert "row 1" in caught.value.detail


def test_the_cap_on_decoded_bytes_is_the_callers(load_images):
    with pytest.raises(DatasetError) as caught:
        load_images([PNG] * 10, max_bytes=1000)
    assert caught.value.code == "dataset.too_large"


def parquet_bytes():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": as_struct(map(encode, PIXELS)), "label": LABELS}), buffer)
    return buffer.getvalue()


WHOLE = parquet_bytes()


@pytest.mark.parametrize("claimed", [4, 6, 500])
def test_a_footer_that_counts_other_rows_than_there_are_is_broken(tmp_path, claimed):
    footer = WHOLE.rindex(b"PAR1") - 4 - int.from_bytes(WHOLE[-8:-4], "little")
    # Thrift's compact form: an i64 field is 0x16, then the number doubled; the first in the footer is num_rows.
    place = WHOLE.index(b"\x16\x0a", footer)
    doubled = 2 * claimed
    number = bytes([doubled]) if doubled < 128 else bytes([doubled % 128 | 128, doubled // 128])
    content = WHOLE[:place] + b"\x16" + number + WHOLE[place + 2 : -8]
    path = tmp_path / "x.parquet"
    path.write_bytes(content + (len(content) - footer).to_bytes(4, "little") + b"PAR1")
    assert pq.ParquetFile(path).metadata.num_rows == claimed
    with pytest.raises(DatasetError) as caught:
        load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=tmp_path)
    assert caught.value.code == "dataset.parquet_broken"
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    kept=st.integers(0, len(WHOLE) - 1),
    flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_parquet_loads_or_is_a_dataset_error(tmp_path_factory, kept, flips):
    content = bytearray(WHOLE if flips else WHOLE[:kept])
    for place, value in flips:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(content)
    with contextlib.suppress(DatasetError):
        assert len(load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=path.parent)) == len(LABELS)

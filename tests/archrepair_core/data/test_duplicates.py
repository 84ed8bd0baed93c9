import io

import numpy as np
import pytest
from PIL import Image

from archrepair_core.data import duplicates
from archrepair_core.data.duplicates import Duplicates, find_duplicates, warn_of
from archrepair_core.data.images import labelled_images, sample_digest


def pictures(n, seed, side=32):
    """Smooth random colour, as photographs are."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BICUBIC)) for item in coarse]
    )


def as_jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def named(name, pixels):
    digests = np.array([sample_digest(item) for item in pixels], dtype="S16")
    return labelled_images(pixels, np.zeros(len(pixels), np.int64), digests, name=name, source="upload:x")


def test_copies_and_re_encoded_copies_are_counted_apart():
    train, test = pictures(300, 0), pictures(200, 1)
    test[5], test[6] = train[50], as_jpeg(train[60])
    train[299] = train[0]
    within, _, across = find_duplicates({"repair": named("repair", train), "test": named("test", test)})
    assert within == Duplicates("repair", None, exact=1, near=0, compared=300, examples=())
    assert across == Duplicates("repair", "test", exact=1, near=1, compared=300, examples=((60, 6),))
    (warning,) = warn_of([within, across])
    assert "row 60 like row 6" in warning.detail


@pytest.mark.parametrize("change", [as_jpeg, lambda item: np.clip(item + 3.0, 0, 255).astype(np.uint8)])
def test_most_re_encoded_copies_are_found_and_strangers_are_not(change):
    train = pictures(400, 0)
    copies = np.stack([change(item) for item in train])
    (*_, found) = find_duplicates({"repair": named("repair", train), "test": named("test", copies)})
    assert found.near >= 300
    (*_, strangers) = find_duplicates({"repair": named("repair", train), "test": named("test", pictures(2000, 9))})
    assert strangers.near == 0


def test_floats_are_compared_as_bytes_are():
    train = pictures(100, 0)
    floats, copies = (pixels.astype(np.float32) / 127.5 - 1 for pixels in (train, np.stack(list(map(as_jpeg, train)))))
    (*_, found) = find_duplicates({"repair": named("repair", floats), "test": named("test", copies)})
    assert found.near >= 70


def test_blank_and_tiny_images_are_not_compared():
    blank = named("repair", np.stack([np.full((32, 32, 3), value, np.uint8) for value in range(40)]))
    tiny = named("test", pictures(40, 0, side=8))
    assert [(found.near, found.compared) for found in find_duplicates({"repair": blank, "test": tiny})] == [
        (0, 0), (0, 0), (0, 0)
    ]  # fmt: skip


def test_pairs_come_in_bounded_chunks_and_none_is_lost(monkeypatch):
    parts = {"repair": named("repair", np.repeat(pictures(20, 0), 5, axis=0))}
    whole = duplicates.near_pairs(*[duplicates.look_at(parts["repair"])] * 2, same=True)
    monkeypatch.setattr(duplicates, "MAX_PAIRS_PER_CHUNK", 7)
    np.testing.assert_array_equal(duplicates.near_pairs(*[duplicates.look_at(parts["repair"])] * 2, same=True), whole)
    assert len(whole) == 20 * (5 * 4 // 2)

import numpy as np
import pytest

from archrepair_core.data.images import DIGEST_DTYPE, ImageRows, labelled_images, sample_digest


def numbered(count):
    pixels = np.zeros((count, 2, 2, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    digests = np.array([sample_digest(image) for image in pixels], DIGEST_DTYPE)
    return labelled_images(pixels, np.arange(count) % 3, digests, name="repair", source="upload:x")


def test_a_subset_of_a_subset_still_knows_its_rows_in_the_source():
    part = numbered(10).subset(np.array([9, 7, 5, 3])).subset(np.array([2, 0]), name="test")
    assert part.images[:][:, 0, 0, 0].tolist() == [5, 9]
    assert part.images.rows.tolist() == [5, 9]
    assert part.labels.tolist() == [2, 0]
    assert (part.name, len(part), part.images.shape) == ("test", 2, (2, 2, 2, 1))


def test_a_subset_has_the_digest_of_the_same_samples_loaded_alone():
    assert numbered(10).subset(np.arange(4)).digest == numbered(4).digest
    assert numbered(10).subset(np.array([1, 0, 2, 3])).digest != numbered(4).digest


def test_a_subset_shares_the_pixels_of_the_whole():
    whole = numbered(10)
    assert whole.subset(np.array([1, 2])).images.pixels is whole.images.pixels


@pytest.mark.parametrize("key", [slice(0, 2), np.array([1, 0]), 1])
def test_rows_that_were_read_can_be_written_without_touching_the_source(key):
    pixels = np.zeros((3, 2, 2, 1), np.uint8)
    pixels.flags.writeable = False
    ImageRows(pixels, np.array([2, 1, 0]))[key][...] = 7
    assert not pixels.any()


def test_digests_tell_shapes_and_dtypes_apart():
    black = np.zeros((4, 1, 1), np.uint8)
    others = [
        black.reshape(1, 4, 1),
        black.reshape(2, 2, 1),
        np.zeros((1, 1, 1), np.float32),
        np.zeros((5, 1, 1), np.uint8),
    ]
    assert len({sample_digest(image) for image in [black, *others]}) == 5

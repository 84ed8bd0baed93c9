import numpy as np
import pytest
import torch
from PIL import Image

from archrepair_core.data.images import DIGEST_DTYPE, labelled_images
from archrepair_core.data.preprocessing import resolve_preprocessing, to_tensor
from archrepair_core.errors import DatasetError
from archrepair_core.spec import Preprocessing

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
GREY = RGB[..., :1]


def dataset(pixels):
    return labelled_images(
        pixels, np.zeros(len(pixels), int), np.zeros(len(pixels), DIGEST_DTYPE), name="x", source="x"
    )


@pytest.mark.parametrize(
    ("pixels", "color", "scale"),
    [
        (RGB, "rgb", "0-1"),
        (GREY, "grey", "0-1"),
        (GREY.astype(np.float32), "grey", "auto"),
        (np.concatenate([RGB, GREY], axis=3), "auto", "0-1"),
    ],
)
def test_auto_becomes_what_the_images_are(pixels, color, scale):
    resolved = resolve_preprocessing(Preprocessing(), dataset(pixels))
    assert (resolved.color, resolved.scale) == (color, scale)


def test_what_was_asked_is_kept():
    asked = Preprocessing(color="rgb", scale="0-255", resize=[4, 4], mean=[1, 2, 3], std=[1, 1, 1])
    assert resolve_preprocessing(asked, dataset(GREY)) == asked


def test_bytes_become_zero_to_one_channels_first():
    x = to_tensor(RGB, Preprocessing())
    assert (x.dtype, x.shape, x.is_contiguous()) == (torch.float32, (4, 3, 6, 8), True)
    np.testing.assert_allclose(x.numpy(), RGB.transpose(0, 3, 1, 2) / 255, rtol=1e-6)


def test_scale_0_255_keeps_the_values_of_bytes():
    np.testing.assert_array_equal(to_tensor(GREY, Preprocessing(scale="0-255")).numpy(), GREY.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("scale", ["auto", "0-1"])
def test_floats_are_never_rescaled(scale):
    pixels = (RGB / 255).astype(np.float32)
    np.testing.assert_array_equal(to_tensor(pixels, Preprocessing(scale=scale)).numpy(), pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("pixels", [RGB.astype(np.float32), RGB / np.float32(-255)])
def test_floats_outside_the_range_that_was_declared_are_refused(pixels):
    with pytest.raises(DatasetError, match="scale says 0-1") as caught:
        to_tensor(pixels, Preprocessing(scale="0-1"))
    assert caught.value.code == "dataset.scale_mismatch"


def test_mean_and_std_apply_per_channel_after_scaling():
    x = to_tensor(RGB, Preprocessing(mean=[0.1, 0.2, 0.3], std=[0.5, 1, 2]))
    expected = (RGB / 255 - [0.1, 0.2, 0.3]) / [0.5, 1, 2]
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_grey_images_can_feed_a_colour_model():
    x = to_tensor(GREY, Preprocessing(color="rgb", mean=[0, 0, 0], std=[1, 1, 1]))
    assert x.shape == (4, 3, 6, 8)
    assert torch.equal(x[:, 0], x[:, 2])


def test_colour_becomes_grey_as_pillow_does_it():
    expected = np.array(Image.fromarray(RGB[0]).convert("L"))
    np.testing.assert_allclose(to_tensor(RGB[:1], Preprocessing(color="grey", scale="0-255"))[0, 0], expected, atol=1)


def test_resize_is_antialiased_as_pillow_does_it():
    expected = np.array(Image.fromarray(RGB[0]).resize((3, 2), Image.Resampling.BILINEAR))
    x = to_tensor(RGB[:1], Preprocessing(resize=[2, 3], scale="0-255"))
    np.testing.assert_allclose(x[0].permute(1, 2, 0), expected, atol=1.01)


@pytest.mark.parametrize("preprocess", [lambda p: to_tensor(RGB, p), lambda p: resolve_preprocessing(p, dataset(RGB))])
def test_a_mean_for_other_channels_is_refused(preprocess):
    with pytest.raises(DatasetError, match="mean has 1 numbers, but the images have 3") as caught:
        preprocess(Preprocessing(mean=[0.5], std=[0.5]))
    assert caught.value.code == "dataset.channel_mismatch"


def test_five_channels_cannot_become_rgb():
    with pytest.raises(DatasetError, match="5 channels cannot become 'rgb'"):
        resolve_preprocessing(Preprocessing(color="rgb"), dataset(np.zeros((2, 4, 4, 5), np.uint8)))


def test_the_source_pixels_are_not_written_to():
    pixels = RGB.copy()
    pixels.flags.writeable = False
    to_tensor(pixels, Preprocessing()).zero_()
    np.testing.assert_array_equal(pixels, RGB)

"""Corruptions: seeded per image, in the pixels' own range, stronger with severity."""

import itertools
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import rotate

from archrepair_core.data.corruptions import COMMON_KINDS, KINDS, SEVERITIES, Corruption, at_severity
from archrepair_core.errors import DatasetError


def pictures(count: int = 4, edge: int = 32, channels: int = 3) -> np.ndarray:
    """Smooth shapes with a sharp edge: like photographs, and unlike noise."""
    y, x = np.meshgrid(np.linspace(0, 1, edge), np.linspace(0, 1, edge), indexing="ij")
    shades = [
        np.where((x - 0.3 - 0.1 * i) ** 2 + (y - 0.5) ** 2 < 0.06, 0.9, 0.25 + 0.4 * x * (channel + 1) / channels)
        for i, channel in itertools.product(range(count), range(channels))
    ]
    return np.rint(255 * np.stack(shades).reshape(count, channels, edge, edge)).transpose(0, 2, 3, 1).astype(np.uint8)


def middle(kind: str, edge: int) -> Corruption:
    known = KINDS[kind].severities(edge)
    return Corruption(kind, known[2] if known else float(np.quantile(KINDS[kind].limits, 0.2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("edge", "channels"), [(32, 3), (32, 1), (80, 3)])
def test_an_image_is_changed_the_same_way_in_any_batch(kind, edge, channels):
    images = pictures(edge=edge, channels=channels)
    before = images.copy()
    together = middle(kind, edge)(images, [5, 6, 7, 8])
    alone = middle(kind, edge)(images[2:3], [7])
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    assert np.array_equal(together[2:3], alone)
    assert np.array_equal(images, before)
    assert channels == 1 or (together != images).any()


@pytest.mark.parametrize("kind", COMMON_KINDS)
def test_the_worst_severity_is_further_from_the_image_than_the_mildest(kind):
    images = pictures(16)

    def distance(severity: int) -> float:
        changed = at_severity(kind, severity, 32)(images, range(16))
        return float(np.abs(changed.astype(float) - images).mean())

    if kind == "elastic_transform":  # from a large jolt to small ripples: another look, not a larger distance
        assert distance(1) != distance(5)
    else:
        assert distance(5) > distance(1)


def test_there_are_the_fifteen_common_corruptions_at_five_severities():
    assert len(COMMON_KINDS) == 15
    assert all(len(KINDS[kind].severities(edge)) == len(SEVERITIES) for kind in COMMON_KINDS for edge in (32, 224))


@pytest.mark.parametrize("kind", ["gaussian_noise", "fog", "jpeg_compression", "pixelate"])
@pytest.mark.parametrize("full_scale", [1.0, 255.0])
def test_floats_are_changed_like_bytes_of_the_same_picture(kind, full_scale):
    images = pictures()
    as_bytes = middle(kind, 32)(images, range(4))
    corruption = Corruption(kind, middle(kind, 32).parameter, full_scale)
    as_floats = corruption(images.astype(np.float32) * (full_scale / 255), range(4))
    assert as_floats.dtype == np.float32
    assert np.abs(as_floats * (255 / full_scale) - as_bytes).max() <= 0.51


def test_noise_has_the_spread_it_is_named_after():
    grey = np.full((8, 32, 32, 3), 128, np.uint8)
    noisy = Corruption("gaussian_noise", 0.08)(grey, range(8)) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.05)


def test_jpeg_is_what_pillow_writes_at_that_quality():
    images = pictures(1)
    compressed = Corruption("jpeg_compression", 50)(images, [0])
    buffer = BytesIO()
    Image.fromarray(images[0]).save(buffer, "JPEG", quality=50)
    assert np.array_equal(compressed[0], np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("degrees", [-60, -10, 30])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_a_picture_is_turned_as_scipy_turns_it(degrees, height, width):
    """Where scipy has no border to invent: on a disk in a field of one colour."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    picture = np.full((1, height, width, 3), 40, np.uint8)
    picture[0, (y - height / 2 - 3) ** 2 + (x - width / 2 + 2) ** 2 < 20] = (200, 100, 0)
    turned = Corruption("rotation", degrees)(picture, [0])
    expected = rotate(picture.astype(float), degrees, axes=(2, 1), reshape=False, order=1, mode="nearest")
    assert np.abs(turned - expected).max() <= 1
    assert (turned != picture).any()


def test_images_of_two_channels_are_refused():
    with pytest.raises(DatasetError, match="have 2"):
        Corruption("fog", 2.0)(np.zeros((1, 8, 8, 2), np.uint8), [0])

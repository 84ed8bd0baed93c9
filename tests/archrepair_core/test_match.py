"""Recognition: the corruption that was applied is the one that is named, and nothing is named when nothing was."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.data.corruptions import Corruption
from archrepair_core.data.images import ImageRows, labelled_images, sample_digest
from archrepair_core.match import explains, explains_to_model, recognise, why_not
from archrepair_core.recognition import NONE, Candidate, Recognition, match_views, pass_through
from archrepair_core.spec import Preprocessing

GREY = Preprocessing(scale="0-1", color="grey")


def digits(rows: slice, *, dtype: type = np.uint8) -> np.ndarray:
    """Handwriting, 16×16 by doubling, so that a blur has something to blur."""
    pixels = load_digits().images[rows].repeat(2, axis=1).repeat(2, axis=2)[..., None] / 16
    return (np.rint(pixels * 255) if dtype is np.uint8 else pixels).astype(dtype)


def rows_of(pixels: np.ndarray) -> ImageRows:
    return ImageRows(pixels, np.arange(len(pixels)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))


def found(kind: str, *, fits: bool = True) -> Recognition:
    return Recognition(kind, 75.0, fits, 1.0, 9.0, 1.0, (Candidate(kind, 75.0, 1.0),), {}, 30, 255.0)


@pytest.mark.parametrize(
    ("kind", "parameter"), [("gaussian_noise", 0.08), ("contrast", 0.45), ("rotation", 25), ("rotation", -40)]
)
def test_the_corruption_of_thirty_unlabelled_images_is_recognised(kind, parameter):
    field = Corruption(kind, parameter)(digits(slice(800, 830)), range(9000, 9030))
    recognition = recognise(network(), rows_of(field), rows_of(digits(slice(0, 150))), preprocessing=GREY)
    assert (recognition.kind, recognition.fits) == (kind, True), recognition.describe()
    assert recognition.parameter == pytest.approx(parameter, rel=0.25)
    assert recognition.distance < recognition.identity_distance / 2
    assert recognition.divergences["recognised"] < recognition.divergences["identity"]
    assert recognition.sureness > 0.9
    assert recognition.ranking[0].kind == kind


def test_nothing_fits_images_like_the_known_ones():
    floats = digits(slice(0, 190), dtype=np.float32)
    preprocessing = Preprocessing(color="grey")  # scale auto: the range tells it
    recognition = recognise(network(), rows_of(floats[150:]), rows_of(floats[:150]), preprocessing=preprocessing)
    assert not recognition.fits
    assert recognition.full_scale == 1.0
    assert match_views(recognition, AUGMENTATIONS["flip"]) == ()


def test_a_fault_that_is_no_corruption_is_answered_with_the_nearest_and_its_distance():
    upside_down = 255 - digits(slice(800, 860))
    recognition = recognise(network(), rows_of(upside_down), rows_of(digits(slice(0, 150))), preprocessing=GREY)
    assert recognition.kind != NONE
    assert not recognition.fits, recognition.describe()
    assert recognition.distance > 10


@pytest.mark.parametrize(
    ("distance", "identity", "answer"),
    [(1.3, 2.0, True), (9.0, 125.0, True), (51.0, 349.0, True), (1.6, 2.0, False), (113.0, 279.0, False)],
)
def test_an_explanation_leaves_little_both_by_its_share_and_on_its_own(distance, identity, answer):
    assert explains(distance, identity) is answer


@pytest.mark.parametrize(
    ("identity", "recognised", "halves", "answer"),
    [
        (0.0155, 0.0017, 0.0019, True),  # JPEG, 200 field images
        (0.0053, 0.0052, 0.0200, True),  # brightness 1, 30 field images: nothing beyond chance to explain
        (0.0487, 0.0427, 0.0025, False),  # pictures hung askew, taken for an elastic transform
        (0.0100, 0.0110, 0.0200, False),
    ],
)
def test_the_model_too_has_to_find_the_field_nearer(identity, recognised, halves, answer):
    divergences = {"identity": identity, "recognised": recognised, "field_halves": halves}
    assert explains_to_model(divergences) is answer


def test_what_one_known_image_in_many_shows_does_not_drown_the_rest():
    """Statistics that are all alike in the screened images have no scale of their own to be divided by."""
    known = digits(slice(0, 150))
    # Drawn under seed 0, the white ones are none of the images that the corruptions are screened with.
    known[np.random.default_rng(0).permutation(150)[60:63]] = 255
    field = Corruption("contrast", 0.45)(digits(slice(800, 830)), range(30))
    recognition = recognise(network(), rows_of(field), rows_of(known), preprocessing=GREY)
    assert (recognition.kind, recognition.fits) == ("contrast", True), recognition.describe()
    assert recognition.identity_distance > 5


@pytest.mark.parametrize(
    ("field", "known", "reason"),
    [
        (np.zeros((9, 16, 16, 2), np.uint8), np.zeros((9, 16, 16, 2), np.uint8), "2 channels"),
        (np.zeros((9, 4, 16, 1), np.uint8), np.zeros((9, 16, 16, 1), np.uint8), "repair images are 4×16"),
        (np.full((9, 16, 16, 1), -1, np.float32), np.zeros((9, 16, 16, 1), np.float32), "unknown"),
        (np.zeros((2, 16, 16, 1), np.uint8), np.zeros((9, 16, 16, 1), np.uint8), "2 repair images"),
        (np.zeros((9, 16, 16, 1), np.uint8), np.zeros((9, 16, 16, 1), np.uint8), None),
    ],
)
def test_why_nothing_can_be_recognised_is_said(field, known, reason):
    said = why_not(rows_of(field), rows_of(known), Preprocessing())
    assert said is None if reason is None else reason in str(said)


def test_replay_is_seen_around_the_recognised_parameter_and_once_as_it_is():
    views = match_views(found("jpeg_compression"), AUGMENTATIONS["flip"])
    qualities = [view.change.parameter for view in views if isinstance(view.change, Corruption)]
    assert views[0].change == Corruption("jpeg_compression", 75.0)
    assert min(qualities) < 75 < max(qualities)
    assert max(qualities) <= 97
    assert [view.change for view in views].count(None) == len(views) // 2
    assert {view.flip for view in views} == {False, True}
    mostly_plain = match_views(found("jpeg_compression"), AUGMENTATIONS["flip"], plain=3)
    assert mostly_plain[: len(views)] == views
    assert [view.change for view in mostly_plain].count(None) == len(mostly_plain) * 3 // 4
    assert not any(view.flip for view in match_views(found("jpeg_compression"), AUGMENTATIONS["none"]))
    assert match_views(found("fog", fits=False), AUGMENTATIONS["flip"]) == ()


def test_labelled_images_through_a_corruption_are_a_dataset_of_their_own(tmp_path):
    pixels = digits(slice(0, 130))
    digests = np.array([sample_digest(image) for image in pixels], dtype="S16")
    images = labelled_images(pixels, np.arange(130), digests, name="replay", source="test")
    corruption = Corruption("jpeg_compression", 30)
    changed = pass_through(images, corruption, name="validation", work_dir=tmp_path, seed=3)
    assert changed.name == "validation"
    assert np.array_equal(changed.labels, images.labels)
    assert np.array_equal(changed.images[:], corruption(pixels, range(130)))
    assert changed.digest != images.digest
    assert "quality 30" in changed.source

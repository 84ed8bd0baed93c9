"""Views: exact on small images, and refused where the model shows that they change the label."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from archrepair_core.data.augment import AUGMENTATIONS, IDENTITY, View, harmless_augmentation, move, viewed
from archrepair_core.data.images import ImageRows
from archrepair_core.spec import Preprocessing


def test_flip_mirrors_left_and_right():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert move(image, View(flip=True)).squeeze().tolist() == [[2, 1, 0], [5, 4, 3]]


def test_shift_moves_the_picture_and_reflects_at_the_edge():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    moved = move(image, View(dx=1)).squeeze()
    assert moved[0].tolist() == [1, 2, 3, 2]
    assert move(image, View(dy=-1)).squeeze()[:, 0].tolist() == [4, 0, 4, 8]


def test_a_shift_is_a_sixteenth_of_the_edge_for_large_images():
    image = torch.arange(32.0).expand(1, 1, 32, 32)
    assert move(image, View(dx=1))[0, 0, 0, 0].item() == 2


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_every_augmentation_starts_with_the_identity_and_keeps_the_shape(name):
    pixels = np.random.default_rng(0).random((3, 8, 8, 2), dtype=np.float32)
    images = ImageRows(pixels, np.arange(3))
    stacked = torch.stack([viewed(images, np.arange(3), Preprocessing(), view) for view in AUGMENTATIONS[name]])
    assert stacked.shape == (len(AUGMENTATIONS[name]), 3, 2, 8, 8)
    assert AUGMENTATIONS[name][0] == IDENTITY
    assert torch.equal(stacked[0], torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_pixels_are_changed_before_preprocessing_and_alike_in_any_batches():
    @dataclass(frozen=True)
    class Speckle:
        def __call__(self, images_NHWC, seeds):
            return np.stack([np.full_like(image, seed % 251) for image, seed in zip(images_NHWC, seeds, strict=True)])

    images = ImageRows(np.zeros((5, 4, 4, 1), np.uint8), np.arange(5))
    view = View(change=Speckle(), seed=7)
    whole = viewed(images, np.arange(5), Preprocessing(), view)
    parts = [viewed(images, np.arange(start, min(start + 2, 5)), Preprocessing(), view) for start in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert len(whole[:, 0, 0, 0].unique()) == 5


@pytest.mark.parametrize(
    ("right_flipped", "right_shifted", "expected"),
    [(200, 200, "flip_crop"), (120, 200, "crop"), (200, 120, "flip"), (120, 120, "none"), (194, 196, "flip_crop")],
)
def test_a_view_that_hurts_the_original_is_not_used(right_flipped, right_shifted, expected):
    labels = torch.zeros(200, dtype=torch.long)

    def answers_of(view):
        right = 200 if view == IDENTITY else right_flipped if view.flip else right_shifted
        return (torch.arange(200) >= right).long()

    assert harmless_augmentation(answers_of, labels) == expected


@pytest.mark.parametrize(("right", "expected"), [(100, "flip_crop"), (99, "none"), (0, "none")])
def test_a_model_that_is_hardly_ever_right_says_nothing_about_views(right, expected):
    labels = torch.zeros(200, dtype=torch.long)
    assert harmless_augmentation(lambda _view: (torch.arange(200) >= right).long(), labels) == expected

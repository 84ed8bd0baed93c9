"""Views: exact on small images, and refused where the model shows that they change the label."""

import pytest
import torch

from archrepair_core.data.augment import AUGMENTATIONS, IDENTITY, View, apply_view, harmless_augmentation, stack_views


def test_flip_mirrors_left_and_right():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert apply_view(image, View(flip=True)).squeeze().tolist() == [[2, 1, 0], [5, 4, 3]]


def test_shift_moves_the_picture_and_reflects_at_the_edge():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    moved = apply_view(image, View(dx=1)).squeeze()
    assert moved[0].tolist() == [1, 2, 3, 2]
    assert apply_view(image, View(dy=-1)).squeeze()[:, 0].tolist() == [4, 0, 4, 8]


def test_a_shift_is_a_sixteenth_of_the_edge_for_large_images():
    image = torch.arange(32.0).expand(1, 1, 32, 32)
    assert apply_view(image, View(dx=1))[0, 0, 0, 0].item() == 2


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_every_augmentation_starts_with_the_identity_and_keeps_the_shape(name):
    images = torch.rand(3, 2, 8, 8)
    stacked = stack_views(images, AUGMENTATIONS[name])
    assert stacked.shape == (len(AUGMENTATIONS[name]), 3, 2, 8, 8)
    assert AUGMENTATIONS[name][0] == IDENTITY
    assert torch.equal(stacked[0], images)


@pytest.mark.parametrize(
    ("right_flipped", "right_shifted", "expected"),
    [(200, 200, "flip_shift"), (120, 200, "shift"), (200, 120, "flip"), (120, 120, "none"), (194, 196, "flip_shift")],
)
def test_a_view_that_hurts_the_original_is_not_used(right_flipped, right_shifted, expected):
    labels = torch.zeros(200, dtype=torch.long)

    def answers_of(view):
        right = 200 if view == IDENTITY else right_flipped if view.flip else right_shifted
        return (torch.arange(200) >= right).long()

    assert harmless_augmentation(answers_of, labels) == expected

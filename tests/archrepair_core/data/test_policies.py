"""Augmentation policies: one draw per seed, for bytes and floats alike."""

import numpy as np
import pytest
import torch

from archrepair_core.data.augment import IDENTITY
from archrepair_core.data.policies import POLICIES, Policy, policy_views
from archrepair_core.errors import DatasetError


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_seed_is_one_draw_in_any_batch_and_leaves_training_alone(name, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, channels), dtype=np.uint8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    together = Policy(name)(images, range(6))
    assert torch.equal(torch.rand(3), expected)
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    assert np.array_equal(Policy(name)(images[4:5], [4])[0], together[4])
    assert (together != images).any()
    assert not np.array_equal(together, Policy(name)(images, range(6, 12)))
    floats = Policy(name, 1.0)((images / 255).astype(np.float32), range(6))
    assert floats.dtype == np.float32
    assert np.allclose(floats * 255, together, atol=1e-3)


def test_the_image_itself_is_among_the_views():
    views = policy_views("trivial", full_scale=255.0)
    assert views[0] == IDENTITY
    assert len({view.seed for view in views[1:]}) == len(views) - 1


def test_images_of_two_channels_are_refused():
    with pytest.raises(DatasetError, match="have 2"):
        Policy("augmix")(np.zeros((1, 8, 8, 2), np.uint8), [0])

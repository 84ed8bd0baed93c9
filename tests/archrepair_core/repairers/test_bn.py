"""Re-estimated statistics: as far as validation likes them, and no further than what works today allows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.repairers.bn import re_estimate_batch_norm
from tests.archrepair_core.repairers.arenas import accuracy, arena_of, as_split

USUAL, BRIGHT = 80, 140


def greys(role, count, *, around, seed):
    """Plain pictures; the class says whether one is brighter than usual in its light."""
    levels = np.random.default_rng(seed).integers(around - 40, around + 41, count)
    pixels = np.broadcast_to(levels[:, None, None, None], (count, 8, 8, 1)).astype(np.uint8)
    return as_split(role, pixels, (levels > around).astype(np.int64))


def brightness_net():
    """Compares the mean pixel with the running mean, which is that of the usual light."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False), nn.BatchNorm1d(1), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[1].weight.fill_(1 / 64)
        net[2].running_mean.fill_(USUAL / 255)
        net[2].running_var.fill_((40 / 255) ** 2 / 3)
        net[3].weight.copy_(torch.tensor([[-4.0], [4.0]]))
    return net.eval()


@pytest.fixture
def splits():
    return {
        "repair": greys("repair", 200, around=BRIGHT, seed=1),
        "validation": greys("validation", 200, around=BRIGHT, seed=2),
        "guard": greys("guard", 200, around=USUAL, seed=3),
    }


def test_statistics_of_another_light_are_taken_over(tmp_path, splits):
    found = re_estimate_batch_norm(arena_of(brightness_net(), tmp_path, **splits))
    assert found is not None
    assert found.alpha == 1.0
    assert accuracy(found.model, splits["validation"]) > 0.9 > accuracy(brightness_net(), splits["validation"])


def test_they_are_taken_over_no_further_than_the_guard_allows(tmp_path, splits):
    arena = replace(arena_of(brightness_net(), tmp_path, **splits), max_guard_broken=0.05)
    found = re_estimate_batch_norm(arena)
    assert found is not None
    assert 0 < found.alpha < 0.5
    assert accuracy(found.model, splits["guard"]) > 0.94


def test_without_statistics_there_is_nothing_to_estimate(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4)).eval()
    assert re_estimate_batch_norm(arena_of(net, tmp_path)) is None

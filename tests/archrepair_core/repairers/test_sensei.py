"""SENSEI trains on the worst variant it has found, and stops looking where an image is robust."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.checkpoint import open_checkpoints
from archrepair_core.data.augment import View
from archrepair_core.features import Features
from archrepair_core.repairers.sensei import (
    IDENTITY,
    NUM_MEMBERS,
    RANGES,
    WorstRows,
    train_on_worst,
    transform,
    white_of,
)
from tests.archrepair_core.repairers.arenas import (
    PREPROCESSING,
    accuracy,
    arena_of,
    as_split,
    damaged_net,
    quadrants,
    soon,
)


class Brightness(nn.Module):
    """Two classes: the brighter an image is, the surer it is of the second."""

    def forward(self, x):
        mean = 20 * x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(mean), mean], 1)


def rows_of(model, label, count=6):
    images = quadrants("repair", count, seed=4)
    images = as_split("repair", images.images[:], np.full(count, label))
    return WorstRows(images, model.eval(), PREPROCESSING, torch.device("cpu"), seed=0)


@pytest.mark.parametrize(("label", "darker"), [(1, True), (0, False)])
def test_the_worst_variant_comes_out_and_gets_worse(label, darker):
    rows = rows_of(Brightness(), label)
    items = np.arange(6)
    plain = rows.images.images[:].mean((1, 2, 3)) / 255
    means = []
    for _ in range(6):
        means.append(rows.read(np.zeros_like(items), items).float().mean((1, 2, 3)).numpy())
        assert (np.diff(rows.losses) <= 0).all(), "the fittest stand first"
    assert ((means[-1] < plain) == darker).all()
    worse = means[-1] <= means[0] + 1e-3 if darker else means[-1] >= means[0] - 1e-3
    assert worse.all()
    assert (rows.members >= RANGES[:, 0] - 1e-9).all()
    assert (rows.members <= RANGES[:, 1] + 1e-9).all()


def test_a_robust_image_is_not_searched_further():
    rows = rows_of(Brightness(), 1)
    rows.losses[:3] = 1e-4
    rows.members[:3, 0] = IDENTITY
    rows.read(np.zeros(6, int), np.arange(6))
    assert (rows.losses[:3] == 1e-4).all()
    assert np.isfinite(rows.losses[3:]).all()
    assert rows.members.shape == (6, NUM_MEMBERS, 7)


def test_the_search_leaves_the_networks_modes_alone():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4)).train()
    rows = WorstRows(quadrants("repair", 8, seed=1), net, PREPROCESSING, torch.device("cpu"), seed=0)
    rows.read(np.zeros(8, int), np.arange(8))
    assert all(module.training for module in net.modules())


def parameters(**changes):
    names = ["angle", "dx", "dy", "shear", "zoom", "contrast", "brightness"]
    values = dict(zip(names, IDENTITY, strict=True)) | changes
    return torch.tensor([[values[name] for name in names]], dtype=torch.float32)


def test_transformations_do_what_they_are_called():
    image = torch.zeros(1, 1, 20, 20)
    image[0, 0, 5:7, 10:12] = 1
    assert torch.allclose(transform(image, parameters(), white=1.0), image, atol=1e-5)
    assert torch.allclose(
        transform(image, parameters(brightness=0.1), white=1.0), (image + 0.1).clamp(max=1), atol=1e-5
    )
    assert torch.allclose(transform(image, parameters(contrast=0.8), white=1.0), 0.8 * image, atol=1e-5)

    def centre(changed):
        weights = changed[0, 0] / changed.sum()
        return [float((weights.sum(1 - axis) * torch.arange(20.0)).sum()) for axis in (0, 1)]

    y, x = centre(image)
    assert centre(transform(image, parameters(dx=0.1), white=1.0)) == pytest.approx([y, x + 2], abs=0.05)
    assert centre(transform(image, parameters(dy=-0.1), white=1.0)) == pytest.approx([y - 2, x], abs=0.05)
    turned = centre(transform(image, parameters(angle=30.0), white=1.0))
    assert math.hypot(turned[0] - 9.5, turned[1] - 9.5) == pytest.approx(math.hypot(y - 9.5, x - 9.5), abs=0.1)
    assert turned != pytest.approx([y, x], abs=0.5)
    nearer = centre(transform(image, parameters(zoom=0.9), white=1.0))
    assert nearer == pytest.approx([9.5 + 0.9 * (y - 9.5), 9.5 + 0.9 * (x - 9.5)], abs=0.1)


def test_white_is_what_the_scaled_pixels_reach():
    assert white_of(quadrants("repair", 4, seed=1), PREPROCESSING) == 1.0
    assert white_of(quadrants("repair", 4, seed=1), PREPROCESSING.model_copy(update={"scale": "0-255"})) == 255.0


def test_the_damaged_network_is_trained_on_the_worst(tmp_path):
    net = damaged_net()
    arena = arena_of(net, tmp_path, limits={"distillation": 0})
    (trial,) = train_on_worst(arena, [], level="auto", deadline=soon(), epochs=60)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trial.model, test) > accuracy(net, test) + 0.1


def test_populations_go_with_their_items_through_features():
    rows = rows_of(Brightness(), 1, count=4)
    features = Features((rows,), torch.zeros(4, 2), torch.ones(4, dtype=torch.long))
    features.batch(np.zeros(2, int), np.array([3, 1]), torch.device("cpu"))
    assert np.isfinite(rows.losses).all(1).tolist() == [False, True, False, True]


@dataclass(frozen=True)
class Unwanted:
    """A change of pixels that must not be asked for."""

    def __call__(self, images_NHWC, seeds):
        raise AssertionError("a view nobody learns from")


def test_views_that_it_does_not_learn_from_are_not_made(tmp_path):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 8, seed=3))
    views = {"replay": (View(), View(change=Unwanted()))}
    arena = replace(arena, starts={"original": arena.starts["original"].seen_under(views)})
    (trial,) = train_on_worst(arena, [], level="auto", deadline=soon(), epochs=1)
    assert trial.run.steps == 2


class Killed(Exception):
    """In place of the signal."""


def test_a_training_that_was_killed_goes_on_with_its_populations(tmp_path):
    whole, twice = tmp_path / "whole", tmp_path / "twice"

    def trained(folder, *, kill_at=-1):
        folder.mkdir(exist_ok=True)
        steps = []

        def on_progress(_message, *, step=0, **_details):
            steps.append(step)
            if step == kill_at:
                raise Killed

        arena = arena_of(damaged_net(), folder, limits={"distillation": 0, "interpolate": False})
        checkpoints = open_checkpoints(folder / "checkpoints", every_seconds=0.0)
        arena = replace(arena, checkpoints=checkpoints, on_progress=on_progress)
        (trial,) = train_on_worst(arena, [], level="auto", deadline=soon(), epochs=12)
        return trial.model.state_dict(), steps

    expected, all_steps = trained(whole)
    with pytest.raises(Killed):
        trained(twice, kill_at=7)
    found, steps = trained(twice)
    assert steps == all_steps[6:], "the step that was killed before its checkpoint is done again"
    assert all(torch.equal(found[name], expected[name]) for name in expected)

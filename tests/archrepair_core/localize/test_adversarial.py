"""Twins stay within the radius and the valid range, and land on the other side."""

import pytest
import torch
from torch import nn

from archrepair_core.localize.adversarial import advance, plan_attack
from archrepair_core.spec import Adversarial, Preprocessing

PREPROCESSINGS = {
    "bytes": Preprocessing(scale="0-1", mean=[0.5, 0.2], std=[0.25, 0.5]),
    "bytes as they are": Preprocessing(scale="0-255"),
    "plain": Preprocessing(scale="0-1"),
}


def make_twins(attack, net, inputs, labels, direction):
    moved = inputs
    for _ in range(attack.steps):
        moved = moved.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(moved), labels, reduction="sum"), moved)
        moved = advance(
            attack,
            moved.detach(),
            inputs.detach(),
            gradient=gradient,
            direction_N=torch.full((len(inputs),), direction),
        )
    return moved


@pytest.mark.parametrize("name", list(PREPROCESSINGS))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_twin_is_within_the_radius_and_the_valid_range_and_changes_the_loss_as_asked(name, norm):
    torch.manual_seed(0)
    preprocessing = PREPROCESSINGS[name]
    full = 255 if preprocessing.scale == "0-255" else 1
    std = torch.tensor(preprocessing.std or [1.0, 1.0]).view(1, 2, 1, 1)
    mean = torch.tensor(preprocessing.mean or [0.0, 0.0]).view(1, 2, 1, 1)
    pixels = torch.rand(8, 2, 5, 5)
    pixels[0] = 0.0  # on the edge of the valid range
    inputs = (pixels * full - mean) / std
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 3))
    labels = torch.arange(8) % 3
    attack = plan_attack(Adversarial(norm=norm, epsilon=0.06, steps=5), preprocessing, inputs)
    loss = nn.functional.cross_entropy(net(inputs), labels)
    for direction in (1.0, -1.0):
        twins = make_twins(attack, net, inputs.clone(), labels, direction)
        moved = (twins * std + mean) / full
        assert moved.min() >= -1e-5
        assert moved.max() <= 1 + 1e-5
        offset = (moved - pixels).flatten(1)
        distance = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
        assert distance.max() <= 0.06 * (1 + 1e-4)
        assert distance.max() >= 0.03, "it uses the radius"
        assert direction * (nn.functional.cross_entropy(net(twins), labels) - loss) > 0


def test_floats_without_a_declared_range_are_bounded_by_what_they_span():
    inputs = torch.rand(4, 1, 3, 3) * 6 - 2
    attack = plan_attack(Adversarial(epsilon=0.5), Preprocessing(scale="auto"), inputs)
    moved = advance(attack, inputs, inputs, gradient=torch.randn_like(inputs), direction_N=torch.ones(4))
    assert moved.min() >= inputs.min()
    assert moved.max() <= inputs.max()
    assert (moved - inputs).abs().max() > 0.5, "the unit is the span of the inputs"

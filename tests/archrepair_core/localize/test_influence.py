"""Gradients and forward impacts of single weights, against counts by hand."""

import pytest
import torch
from torch import nn

from archrepair_core.localize.influence import loss_gradients, measure_influence, weighted_layers


def test_the_gradient_is_the_magnitude_of_the_sum_over_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    found = loss_gradients(net, [(x[:2], y[:2]), (x[2:], y[2:])], weighted_layers(net))
    nn.functional.cross_entropy(net(x), y, reduction="sum").backward()
    assert weighted_layers(net) == ["0", "2"]
    for name in ("0", "2"):
        assert torch.allclose(found[name], net.get_submodule(name).weight.grad.abs(), atol=1e-5)


def test_the_impact_of_a_weight_is_its_share_in_the_neuron_times_the_share_of_the_neuron_in_the_answer():
    """Neuron 0 gets 1·2 and 3·1, neuron 1 gets 1·1 and 3·1; the answer is 4·n0 + 1·n1."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, -1.0], [1.0, 1.0]]))
        net[1].weight.copy_(torch.tensor([[4.0, 1.0]]))
    found = measure_influence(net, [(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))], ["0"])["0"].impact
    assert torch.allclose(found, torch.tensor([[2 / 5 * 0.8, 3 / 5 * 0.8], [1 / 4 * 0.2, 3 / 4 * 0.2]]), atol=1e-6)


def test_a_convolutions_impact_is_summed_over_positions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    x = torch.randn(2, 2, 4, 4)
    found = measure_influence(net, [(x, torch.zeros(2, dtype=torch.long))], ["0"])["0"].impact
    out = net[0](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net[1:](out).sum(), out)
    patches = nn.functional.unfold(x, 3, padding=1, stride=2)  # [N, 18, P]
    flow = patches.abs()[:, None] * net[0].weight.detach().abs().view(1, 3, 18, 1)
    share = flow / flow.sum(2, keepdim=True)
    behind = (slope.abs() / slope.abs().sum((1, 2, 3), keepdim=True)).flatten(2)
    expected = (share * behind[:, :, None]).sum(3).mean(0)
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)


def test_measuring_leaves_modes_and_gradient_flags_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 2)).train()
    net[0].weight.requires_grad_(False)
    measure_influence(net, [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], ["0", "2"])
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_transposed_convolutions_are_left_out(groups):
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=groups), nn.Conv2d(4, 4, 3, groups=4))
    assert weighted_layers(net) == (["0", "1"] if groups == 1 else ["1"])

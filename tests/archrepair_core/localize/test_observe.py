"""What is seen of each layer, against per-input gradients computed one by one."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from archrepair_core.localize.observe import observe_layers


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))


def test_influence_is_the_per_input_weight_gradient_times_the_weights():
    net = make_net().eval()
    inputs, labels = torch.randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 3, 0])
    observed = {
        layer.layer: layer for layer in observe_layers(net, [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])])
    }
    for name in ("0", "4"):
        weight = net.get_submodule(name).weight
        for row in range(5):
            loss = F.cross_entropy(net(inputs[row : row + 1]), labels[row : row + 1])
            (gradient,) = torch.autograd.grad(loss, weight)
            expected = (gradient * weight).flatten(1).sum(1).abs().detach().numpy()
            np.testing.assert_allclose(observed[name].influence_IC[row], expected, rtol=1e-4, atol=1e-6)


def test_activation_is_the_spatial_mean_of_each_channel():
    net = make_net().eval()
    inputs, labels = torch.randn(4, 2, 6, 6), torch.zeros(4, dtype=torch.long)
    (conv, linear) = observe_layers(net, [(inputs, labels)])
    np.testing.assert_allclose(conv.activation_IC, net[0](inputs).mean((2, 3)).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(linear.activation_IC, net(inputs).detach().numpy(), rtol=1e-5)


def test_the_model_is_left_as_it_was():
    net = make_net().train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    observe_layers(net, [(torch.randn(4, 2, 6, 6), torch.zeros(4, dtype=torch.long))])
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [module.training for module in net] == [True, False, True, True, True]
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_tokens_of_a_linear_layer_are_averaged():
    net = nn.Sequential(nn.Linear(6, 3), nn.Flatten(), nn.Linear(12, 2)).eval()
    inputs = torch.randn(2, 4, 6)
    (first, _) = observe_layers(net, [(inputs, torch.tensor([0, 1]))])
    np.testing.assert_allclose(first.activation_IC, net[0](inputs).mean(1).detach().numpy(), rtol=1e-5)


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2))

    def forward(self, x):
        return x @ self.weight


def test_a_model_without_a_layer_torch_knows_has_no_observations():
    assert observe_layers(ByHand(), [(torch.rand(3, 4), torch.tensor([0, 1, 1]))]) == []

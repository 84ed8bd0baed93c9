"""What is seen of each layer, against per-input gradients computed one by one."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from archrepair_core.localize.adversarial import plan_attack
from archrepair_core.localize.observe import observe_inputs
from archrepair_core.spec import Adversarial, Preprocessing


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))


def observe(net, *batches, attack=None):
    return observe_inputs(net, batches, attack=attack)


def test_influence_is_the_per_input_weight_gradient_times_the_weights():
    net = make_net().eval()
    inputs, labels = torch.randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 3, 0])
    seen = observe(net, (inputs[:3], labels[:3]), (inputs[3:], labels[3:]))
    for name in ("0", "4"):
        weight = net.get_submodule(name).weight
        for row in range(5):
            loss = F.cross_entropy(net(inputs[row : row + 1]), labels[row : row + 1])
            (gradient,) = torch.autograd.grad(loss, weight)
            expected = (gradient * weight).flatten(1).sum(1).abs().detach().numpy()
            np.testing.assert_allclose(seen.influence_IC[row, seen.layers[name]], expected, rtol=1e-4, atol=1e-6)


def test_activation_is_the_spatial_mean_of_each_channel():
    net = make_net().eval()
    inputs, labels = torch.randn(4, 2, 6, 6), torch.zeros(4, dtype=torch.long)
    seen = observe(net, (inputs, labels))
    conv, linear = (seen.activation_IC[:, seen.layers[name]] for name in ("0", "4"))
    np.testing.assert_allclose(conv, net[0](inputs).mean((2, 3)).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(linear, net(inputs).detach().numpy(), rtol=1e-5)
    assert seen.right_I.tolist() == (net(inputs).argmax(1) == labels).tolist()


def test_twins_are_observed_beside_their_originals_and_every_pass_is_counted():
    net = make_net().eval()
    inputs = torch.rand(6, 2, 6, 6)
    labels = net(inputs).argmax(1)
    labels[3:] = (labels[3:] + 1) % 4
    attack = plan_attack(Adversarial(epsilon=2.0, steps=4), Preprocessing(), inputs)
    seen = observe(net, (inputs[:4], labels[:4]), (inputs[4:], labels[4:]), attack=attack)
    assert seen.passes == 6 * (4 + 1)
    assert seen.item_I.tolist() == [*range(6), *range(6)]
    assert seen.right_I[:6].tolist() == [True] * 3 + [False] * 3
    alone = observe(net, (inputs, labels))
    np.testing.assert_allclose(seen.activation_IC[:6], alone.activation_IC, rtol=1e-5, atol=1e-6)
    assert not np.allclose(seen.activation_IC[6:], alone.activation_IC)
    assert (seen.right_I[6:] != seen.right_I[:6]).sum() >= 3, "so large a radius changes answers"


def test_the_model_is_left_as_it_was():
    net = make_net().train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    observe(net, (torch.randn(4, 2, 6, 6), torch.zeros(4, dtype=torch.long)))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [module.training for module in net] == [True, False, True, True, True]
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_tokens_of_a_linear_layer_are_averaged():
    net = nn.Sequential(nn.Linear(6, 3), nn.Flatten(), nn.Linear(12, 2)).eval()
    inputs = torch.randn(2, 4, 6)
    seen = observe(net, (inputs, torch.tensor([0, 1])))
    expected = net[0](inputs).mean(1).detach().numpy()
    np.testing.assert_allclose(seen.activation_IC[:, seen.layers["0"]], expected, rtol=1e-5)


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2))

    def forward(self, x):
        return x @ self.weight


def test_a_model_without_a_layer_torch_knows_has_no_observations():
    assert observe(ByHand(), (torch.rand(3, 4), torch.tensor([0, 1, 1]))) is None

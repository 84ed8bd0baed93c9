"""Channels last where the model bears it; the file keeps its own order."""

import copy

import pytest
import torch
from torch import nn

from archrepair_core.layout import lay_back_, lay_out_


class Viewing(nn.Module):
    """Flattens as many hand-written networks do, which fails for activations in another order."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(x.shape[0], -1))


class OrderReading(Viewing):
    """Answers by how its activations lie."""

    def forward(self, x):
        return self.conv(x).as_strided((len(x), 2), (144, 1))


@pytest.fixture
def inputs():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def strides(model):
    return {name: tensor.stride() for name, tensor in model.state_dict().items() if tensor.dim() == 4}


def test_convolutions_answer_channels_last_and_the_same(inputs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten()).eval()
    own, parameters, expected = strides(model), list(model.parameters()), model(inputs)
    lay_out_(model, inputs)
    assert model[:4](inputs).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(inputs), expected)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    lay_back_(model, own)
    assert strides(model) == own
    assert torch.equal(model(inputs), expected)


@pytest.mark.parametrize("kind", [Viewing, OrderReading])
def test_a_model_that_needs_its_own_order_keeps_it(kind, inputs):
    model = kind().eval()
    own, expected = strides(model), model(inputs)
    lay_out_(model, inputs)
    assert strides(model) == own
    assert torch.equal(model(inputs), expected)


def test_a_file_that_was_channels_last_is_so_again(inputs):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    own, edited = strides(model), copy.deepcopy(model)
    edited.weight.data = edited.weight.data.contiguous()
    lay_back_(edited, own)
    assert strides(edited) == own


def test_what_the_file_does_not_know_is_contiguous(inputs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    lay_out_(model, inputs)
    assert not model[0].weight.is_contiguous()
    lay_back_(model, {})
    assert model[0].weight.is_contiguous()

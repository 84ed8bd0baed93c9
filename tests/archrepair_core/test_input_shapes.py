import time

import pytest
import torch
from torch import nn

from archrepair_core.errors import ModelError
from archrepair_core.input_shapes import candidate_shapes, example_inputs, guess_input_shape


class Flattened(nn.Sequential):
    """A digit classifier whose last layer only fits images of one size."""

    def __init__(self, channels: int, side: int) -> None:
        left = side // 4
        super().__init__(
            nn.Conv2d(channels, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4 * left * left, 10),
        )  # fmt: skip


class Patches(nn.Module):
    def __init__(self, side: int, *, class_token: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, (side // 4) ** 2 + class_token, 8))
        self.class_token = nn.Parameter(torch.zeros(1, class_token, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return self.head(tokens.mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layer(x + y)


def pooled(channels: int, *strides: int) -> nn.Module:
    layers: list[nn.Module] = []
    width = channels
    for stride in strides:
        layers += [nn.Conv2d(width, 8, 3, stride=stride, padding=1), nn.ReLU()]
        width = 8
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Flattened(1, 28), (1, 28, 28)),
        (Flattened(3, 32), (3, 32, 32)),
        (Flattened(3, 96), (3, 96, 96)),
        (Patches(48, class_token=1), (3, 48, 48)),
        (Patches(40, class_token=0), (3, 40, 40)),
        (pooled(3, 1, 1, 2, 2), (3, 32, 32)),
        (pooled(1, 1, 2), (1, 28, 28)),
        (pooled(3, 2, 2, 2, 2, 2), (3, 224, 224)),
        (pooled(3, 1, 2, 2, 2, 2, 2), (3, 224, 224)),
        (pooled(3, 4), (3, 224, 224)),
        (nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2)), (20,)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)), (2, 128)),
        (pooled(3, 2, 2, 2, 2, 2).double(), (3, 224, 224)),
    ],
)
def test_the_shape_is_the_one_the_architecture_speaks_of(model: nn.Module, shape: tuple[int, ...]):
    assert guess_input_shape(model) == shape
    model(example_inputs(model, shape))


def test_a_linear_layer_may_see_a_flattened_image():
    assert candidate_shapes(nn.Linear(784, 10)) == [(784,), (1, 28, 28), (16, 784)]
    assert (3, 32, 32) in candidate_shapes(nn.Linear(3072, 10))


def test_weights_used_without_layers_tell_the_channels_too():
    model = nn.Module()
    model.register_parameter("kernel", nn.Parameter(torch.zeros(8, 3, 3, 3)))
    assert candidate_shapes(model)[0] == (3, 224, 224)


def test_guessing_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guess_input_shape(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model", [TwoInputs(), nn.Embedding(10, 4), nn.Identity()])
def test_a_model_nothing_fits_says_so_with_what_to_do(model: nn.Module):
    with pytest.raises(ModelError, match="no usual input shape fits the model") as raised:
        guess_input_shape(model)
    assert raised.value.code == "model.input_shape_unknown"
    assert "input_shape" in raised.value.hint


def test_guessing_has_a_time_limit():
    class Slow(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2)
            raise RuntimeError("never fits")

    started = time.monotonic()
    with pytest.raises(ModelError, match=r"\[3, 224, 224\]: never fits"):
        guess_input_shape(Slow(3, 4, 3), max_seconds=0.5)
    assert time.monotonic() - started < 1.5

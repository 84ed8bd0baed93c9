import pytest
import torch
from torch import Tensor, nn

from archrepair_core.ingest.decompile import decompile
from archrepair_core.ingest.leaves import build_leaf
from archrepair_core.ingest.verify import verify_decompiled

IMAGES = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

ON_IMAGES = [
    nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False),
    nn.Conv2d(4, 6, 3, padding="same"),
    nn.BatchNorm2d(4, eps=0.1, momentum=0.3),
    nn.BatchNorm2d(4, affine=False),
    nn.GroupNorm(2, 4, eps=0.1),
    nn.LayerNorm((9, 9), eps=0.1),
    nn.LayerNorm(9, elementwise_affine=False),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d(2),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=5),
    nn.AdaptiveAvgPool2d((2, 3)),
    nn.Flatten(1, 2),
    nn.PReLU(4),
    nn.Dropout(0.3),
    nn.Dropout2d(0.3, inplace=True),
]
ON_ROWS = [
    *(nn.Linear(4, 5), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(4), nn.Identity()),
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.SiLU(), nn.GELU("tanh")),
    *(nn.LeakyReLU(0.3), nn.ELU(0.5), nn.Hardswish(), nn.Hardsigmoid(), nn.Mish(), nn.Sigmoid(), nn.Tanh()),
    *(nn.Softmax(1), nn.LogSoftmax(-1)),
]
CASES = [(layer, IMAGES) for layer in ON_IMAGES] + [(layer, ROWS) for layer in ON_ROWS]


class Around(nn.Module):
    """A parameter before the layer, so that every layer stands in a trainable model."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("layer", "inputs"), CASES, ids=[str(layer) for layer, _ in CASES])
def test_layer_comes_back_as_its_own_class_with_its_settings(layer, inputs, traced, archived):
    if traced and isinstance(layer, nn.Identity):
        pytest.skip("an identity leaves nothing in a trace")
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    root, unit = archived(Around(layer).eval(), inputs if traced else None)
    module = decompile(root, unit)
    assert type(module.layer) is type(layer)
    assert _settings(module.layer) == _settings(layer)
    assert verify_decompiled(root, module, inputs).max_abs_diff == 0
    assert list(torch.jit.script(module).state_dict()) == list(root.state_dict())


# Kept for printing or for `from_…` constructors: they do not change what a layer computes.
INCIDENTAL = {"training", "_reversed_padding_repeated_twice", "kernel_size", "stride", "padding", "dilation", "affine"}


def _settings(layer):
    plain = {key: value for key, value in vars(layer).items() if not key.startswith("_") and key not in INCIDENTAL}
    pairs = {
        key: _pair(getattr(layer, key))
        for key in ("kernel_size", "stride", "padding", "dilation")
        if key in vars(layer)
    }
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()} | pairs


def _pair(value):
    return (value, value) if isinstance(value, int) else value


def test_class_that_only_calls_itself_conv2d_is_not_believed(archived):
    class Conv2d(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return torch.conv2d(input, self.weight, self.bias) * 2

    Conv2d._jit_override_qualname = "__torch__.torch.nn.modules.conv.Conv2d"
    root, unit = archived(Around(Conv2d(4, 4, 3)))
    assert build_leaf(root.layer) is None
    module = decompile(root, unit)
    assert type(module.layer) is not nn.Conv2d
    assert verify_decompiled(root, module, IMAGES).max_abs_diff == 0


class Stray(nn.Linear):
    """Computes a linear map, but with its weight in the wrong place, or with one tensor more."""

    def __init__(self, swapped: bool):
        super().__init__(4, 4, bias=not swapped)
        self.register_buffer("extra", torch.randn(4))
        self.swapped = swapped

    def forward(self, input: Tensor) -> Tensor:
        if self.swapped:
            return torch.nn.functional.linear(self.weight, input)
        return torch.nn.functional.linear(input, self.weight, self.extra)


@pytest.mark.parametrize("swapped", [False, True])
def test_linear_with_tensors_elsewhere_is_not_believed(swapped, archived):
    Stray._jit_override_qualname = "__torch__.torch.nn.modules.linear.Linear"
    root, unit = archived(Around(Stray(swapped)))
    assert build_leaf(root.layer) is None
    assert verify_decompiled(root, decompile(root, unit), ROWS).max_abs_diff == 0


class OnlyInTraining(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        out = torch.relu(input)
        return out + 1 if self.training else out


def test_layer_that_differs_in_train_mode_is_not_believed(archived):
    OnlyInTraining._jit_override_qualname = "__torch__.torch.nn.modules.activation.ReLU"
    root, unit = archived(Around(OnlyInTraining()))
    module = decompile(root, unit).train()
    assert type(module.layer) is not nn.ReLU
    assert torch.equal(module(ROWS), torch.relu(ROWS) + 1)


def test_padding_mode_that_needs_a_second_operator_is_generated(archived):
    root, unit = archived(Around(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")))
    module = decompile(root, unit)
    assert type(module.layer) is not nn.Conv2d
    assert verify_decompiled(root, module, IMAGES).max_abs_diff == 0


class Reversed(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return self[0](self[1](input))


def test_sequential_in_another_order_is_not_believed(archived):
    Reversed._jit_override_qualname = "__torch__.torch.nn.modules.container.Sequential"
    root, unit = archived(Around(Reversed(nn.Linear(4, 4), nn.Tanh())))
    module = decompile(root, unit)
    assert type(module.layer) is not nn.Sequential
    assert verify_decompiled(root, module, ROWS).max_abs_diff == 0


def test_batch_norm_with_cumulative_average_trains_alike(archived):
    layer = nn.BatchNorm1d(4, momentum=None).eval()
    for traced in (None, ROWS):
        module = decompile(*archived(Around(layer).eval(), traced)).train()
        twin = nn.BatchNorm1d(4, momentum=None)
        for _ in range(2):
            module(ROWS + 1), twin(ROWS + 1)
        assert torch.allclose(module.layer.running_mean, twin.running_mean)

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from archrepair_core.blocks import find_blocks, replace_block_
from archrepair_core.errors import ModelError, SpecError


class Residual(nn.Module):
    """ResNet block with the parameter-free shortcut of CIFAR ResNets (option A)."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra > 0:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, self.extra // 2, self.extra // 2])
        return F.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Residual(4, 4), Residual(4, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 8, 2), Residual(8, 8), Residual(8, 8))
        self.layer3 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16), Residual(16, 16))
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class PlainCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 8, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


class Encoder(nn.Module):
    """Pre-norm block whose attention takes three tensors and whose MLP alone would look like a block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mixer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.mixer(self.attention(y, y, y, need_weights=False)[0])
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """A backbone inside a wrapper, with a class token and a position table on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.encoder = nn.Sequential(Encoder(), Encoder(), Encoder())

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.encoder(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0]


class Narrowed(nn.Module):
    """A repeated module without a bypass, whose body alone repeats as often."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 4, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.enter(x))


class Wrapped(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) + self.part(x)


def named(blocks, level):
    return [block.name for block in blocks if block.level == level]


def test_cifar_resnet20_has_nine_blocks_in_three_stages_in_execution_order():
    blocks = find_blocks(CifarResNet(), torch.randn(4, 3, 16, 16))
    assert [block.name for block in blocks] == [
        name for layer in ("layer1", "layer2", "layer3") for name in (layer, f"{layer}.0", f"{layer}.1", f"{layer}.2")
    ]
    assert named(blocks, "stage") == ["layer1", "layer2", "layer3"]
    assert [block.depth for block in blocks] == list(range(12))


def test_a_block_knows_its_shapes_parameters_and_cost():
    block = next(b for b in find_blocks(CifarResNet(), torch.randn(4, 3, 16, 16)) if b.name == "layer2.0")
    assert (block.kind, block.level) == ("Residual", "block")
    assert (block.input_shape, block.output_shape) == ((4, 16, 16), (8, 8, 8))
    assert block.num_params == 4 * 8 * 9 + 8 * 8 * 9 + 4 * 8
    assert block.macs == 8 * 8 * (4 * 8 * 9 + 8 * 8 * 9)
    assert 0 < block.latency_share < 1


def test_latency_shares_of_the_stages_leave_room_for_stem_and_head():
    blocks = find_blocks(CifarResNet(), torch.randn(4, 3, 16, 16))
    assert sum(block.latency_share for block in blocks if block.level == "stage") < 1


@pytest.mark.parametrize(
    ("name", "num_blocks", "stages"),
    [
        ("resnet18", 8, ["layer1", "layer2", "layer3", "layer4"]),
        pytest.param("resnet50", 16, ["layer1", "layer2", "layer3", "layer4"], marks=pytest.mark.slow),
        ("mobilenet_v2", 17, ["features"]),
        ("shufflenet_v2_x0_5", 16, ["stage2", "stage3", "stage4"]),
        ("squeezenet1_1", 8, ["features"]),
    ],
)
def test_known_architectures_give_the_blocks_their_papers_name(name, num_blocks, stages):
    blocks = find_blocks(get_model(name), torch.randn(2, 3, 64, 64))
    assert len(named(blocks, "block")) == num_blocks
    assert named(blocks, "stage") == stages


def test_parts_inside_an_encoder_block_are_no_blocks_and_wrappers_are_no_stages():
    net = nn.Sequential(Tokens(), nn.Linear(8, 3))
    blocks = find_blocks(net, torch.randn(2, 3, 8, 8))
    assert named(blocks, "block") == ["0.encoder.0", "0.encoder.1", "0.encoder.2"]
    assert named(blocks, "stage") == ["0.encoder"]


def test_a_wrapper_that_only_holds_one_block_is_not_the_block():
    net = nn.Sequential(*(nn.Sequential(Residual(4, 4)) for _ in range(2)), nn.Sequential(Residual(4, 4), nn.ReLU()))
    assert [block.name for block in find_blocks(net, torch.randn(2, 4, 8, 8))] == ["0.0", "1.0", "2.0"]


def test_a_repeated_module_is_the_block_and_not_the_body_inside_it():
    net = nn.Sequential(Narrowed(), nn.ReLU(), Narrowed())
    assert [block.name for block in find_blocks(net, torch.randn(2, 4, 8, 8))] == ["0", "2"]


def test_a_single_residual_module_is_a_block_although_nothing_repeats():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(4, 4), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert [block.name for block in find_blocks(net, torch.randn(2, 3, 8, 8))] == ["1"]


def test_repeated_plain_sequences_are_blocks():
    def pair(width):
        return nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    net = nn.Sequential(pair(3), pair(4), nn.Flatten(), nn.Linear(4 * 64, 2))
    assert [block.name for block in find_blocks(net, torch.randn(2, 3, 8, 8))] == ["0", "1"]


def test_flat_models_fall_back_to_their_layers_with_weights():
    blocks = find_blocks(PlainCnn(), torch.randn(2, 1, 8, 8))
    assert [(block.name, block.kind, block.level) for block in blocks] == [
        ("conv1", "Conv2d", "block"),
        ("conv2", "Conv2d", "block"),
        ("fc", "Linear", "block"),
    ]


def test_vgg_style_models_give_layers_as_blocks_and_their_sequences_as_stages():
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    net = nn.Sequential(features, nn.Flatten(), classifier)
    blocks = find_blocks(net, torch.randn(2, 3, 8, 8))
    assert named(blocks, "stage") == ["0", "2"]
    assert named(blocks, "block") == ["0.0", "0.2", "0.4", "2.0", "2.2"]


def test_frozen_parameters_still_make_a_block():
    net = CifarResNet()
    net.requires_grad_(False)
    assert len(find_blocks(net, torch.randn(2, 3, 16, 16))) == 12


def test_a_module_that_runs_twice_is_a_block_when_both_calls_are_alike():
    blocks = find_blocks(Wrapped(nn.Linear(3, 3)), torch.randn(2, 3))
    assert [(block.name, block.macs) for block in blocks] == [("part", 2 * 9)]


class Uneven(nn.Module):
    """Calls its only layer on tensors of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean() + self.conv(x[:, :, 1:]).mean()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


@pytest.mark.parametrize(
    ("net", "inputs", "why"),
    [
        (Uneven(), torch.randn(2, 3, 4, 4), "conv is called with tensors of changing shapes"),
        (Recurrent(), torch.randn(2, 5, 3), "rnn gives something other than one tensor"),
    ],
)
def test_a_model_without_blocks_is_refused_naming_what_stands_in_the_way(net, inputs, why):
    with pytest.raises(ModelError, match=why) as caught:
        find_blocks(net, inputs)
    assert caught.value.code == "model.no_repairable_block"


def test_looking_for_blocks_changes_nothing():
    net = CifarResNet()
    net.layer1[0].bn1.eval()
    inputs = torch.randn(2, 3, 16, 16)
    flags, before = [module.training for module in net.modules()], inputs.clone()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    find_blocks(net, inputs)
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(inputs, before)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_model_that_changes_its_input_in_place_is_searched_too():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))
    inputs = torch.full((2, 3), -1.0)
    assert [block.name for block in find_blocks(net, inputs)] == ["1"]
    assert torch.equal(inputs, torch.full((2, 3), -1.0))


def test_replacing_a_block_leaves_every_other_parameter_the_same_object():
    net = CifarResNet()
    old, new = net.layer2[1], nn.Conv2d(8, 8, 1)
    parameters = dict(net.named_parameters())
    keys = [key for key in net.state_dict() if not key.startswith("layer2.1.")]
    assert replace_block_(net, "layer2.1", new) is old
    assert net.layer2[1] is new
    assert all(parameters[name] is p for name, p in net.named_parameters() if not name.startswith("layer2.1."))
    assert [key for key in net.state_dict() if not key.startswith("layer2.1.")] == keys


def test_an_unknown_block_name_is_answered_with_close_ones():
    with pytest.raises(SpecError, match=r"'layer2\.7'") as caught:
        replace_block_(CifarResNet(), "layer2.7", nn.Identity())
    assert caught.value.code == "spec.unknown_block"
    assert "layer2" in caught.value.hint
    with pytest.raises(SpecError):
        replace_block_(CifarResNet(), "", nn.Identity())

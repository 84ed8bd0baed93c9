import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from archrepair_core.blocks import find_blocks, replace_block_
from archrepair_core.cut import Cut, NoCut, cut_at
from archrepair_core.errors import EngineError
from archrepair_core.ingest.archive import ingest_archive
from archrepair_core.ingest.decompile import decompile


class Residual(nn.Module):
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
        self.layer1 = nn.Sequential(Residual(4, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 8, 2), Residual(8, 8))
        self.layer3 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += self.shortcut(x)
        return y


class PlainCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 8, 3)
        self.fc = nn.Linear(8 * 12 * 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, 8 * 12 * 12)
        x = F.relu(self.conv1(x), inplace=True)
        return self.fc(F.relu(self.conv2(x)).view(shape))


class Generated(nn.Module):
    """The style of rebuilt TorchScript: one call per line, children by getattr, constants named before their use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList([Residual(4, 4), Residual(4, 4), Residual(4, 4)])
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        v1 = 2
        v2 = [v1, 3]
        v3 = self.conv(x)
        v4 = getattr(self.layers, "0")(v3)
        v5 = self.layers[1](v4)
        v6 = getattr(self.layers, "2")(v5)
        if self.training:
            v7 = F.dropout(v6, 0.5, self.training)
            v8 = torch.mul(v7, 1.0)
        else:
            v8 = v6
        v9 = torch.mean(v8, v2)
        return self.fc(v9)


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def features(self, x: Tensor, scale: float = 1.5) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
            x = F.relu(x) * scale
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class EncoderNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.Sequential(layer, copy.deepcopy(layer))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.patches(x).reshape(batch, 8, -1).transpose(1, 2) + self.position
        return self.head(self.layers(x)[:, 0])


class SkipsPast(PlainCnn):
    """conv1's answer flows past conv2."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        z = self.conv2(y) + y.mean()
        return self.fc(z.flatten(1))


class NeedsEarlierShape(PlainCnn):
    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.conv2(self.conv1(x))
        return self.fc(x.view(batch, -1))


class RunsTwice(PlainCnn):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return (self.conv2(y) + self.conv2(-y)).flatten(1)


class LeavesNotes(PlainCnn):
    """Statically cuttable, but the rest reads what the prefix wrote on the module."""

    def forward(self, x: Tensor) -> Tensor:
        self.brightness = x.mean()
        x = self.conv2(self.conv1(x))
        return self.fc(x.flatten(1)) + self.brightness


class TakesAnotherWayInTraining(PlainCnn):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.fc(self.conv2(self.conv1(x)).flatten(1)) * 0
        x = self.conv1(x)
        x = self.conv2(x)
        return self.fc(x.flatten(1))


def images(size=16, batch=3):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def settled(net):
    """The net in eval mode with batch-norm statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def assert_cuts_everywhere(net, inputs, names):
    other = torch.randn(inputs.shape[0] + 2, *inputs.shape[1:])
    for name in names:
        cut = cut_at(net, name, inputs)
        assert isinstance(cut, Cut), f"{name}: {cut.reason}"
        with torch.no_grad():
            for batch in (inputs, other):
                assert torch.equal(cut.tail(cut.prefix(batch)), net(batch)), name


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (CifarResNet(), None),
        (PlainCnn(), None),
        (EncoderNet(), None),
        (Generated(), ["conv", "layers.0", "layers.1", "layers.2", "fc"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())), ["0", "2", "2.0"]),
    ],
    ids=["cifar_resnet", "flat", "encoder", "generated", "sequential"],
)
def test_tail_of_prefix_is_the_model_bit_for_bit(net, names):
    inputs = images()
    settled(net)
    assert_cuts_everywhere(net, inputs, names or [block.name for block in find_blocks(net, inputs)])


@pytest.mark.slow
def test_resnet18_can_be_cut_at_every_block_and_stage():
    net, inputs = settled(get_model("resnet18")), images(64, batch=2)
    names = [block.name for block in find_blocks(net, inputs)]
    assert len(names) == 12
    assert_cuts_everywhere(net, inputs, names)


@pytest.mark.parametrize(
    "export", [torch.jit.script, lambda net: torch.jit.trace(net, images())], ids=["script", "trace"]
)
def test_a_model_rebuilt_from_torchscript_can_be_cut_at_every_block_and_stage(export, tmp_path):
    export(settled(CifarResNet())).save(tmp_path / "upload.pt")
    archive = ingest_archive(tmp_path / "upload.pt", tmp_path)
    net = decompile(archive.root, archive.compilation_unit)
    names = [block.name for block in find_blocks(net, images())]
    assert names == [name for layer in ("layer1", "layer2", "layer3") for name in (layer, f"{layer}.0", f"{layer}.1")]
    assert_cuts_everywhere(net, images(), names)


def test_a_loop_over_layers_goes_on_after_the_cut_one():
    net = Looping().eval()
    assert_cuts_everywhere(net, torch.randn(4, 3), ["stem", "layers.0", "layers.1", "layers.2", "head"])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["layer1", "layer1.1", "layer2.0", "layer3.1"])
def test_gradients_through_the_tail_equal_those_of_the_full_model(name, training):
    inputs = images()
    net = settled(CifarResNet())
    cut = cut_at(net, name, inputs)
    net.train(training)
    with torch.no_grad():
        entering = cut.prefix(inputs)
    net.zero_grad()
    twin = copy.deepcopy(net)
    F.cross_entropy(cut.tail(entering), torch.tensor([0, 1, 2])).backward()
    F.cross_entropy(twin(inputs), torch.tensor([0, 1, 2])).backward()
    behind = [key for key, parameter in net.named_parameters() if parameter.grad is not None]
    assert {key for key in behind if key.startswith(f"{name}.")} == {
        f"{name}.{key}" for key, _ in net.get_submodule(name).named_parameters()
    }
    assert not any(key.startswith("conv1") for key in behind)
    whole = dict(twin.named_parameters())
    for key in behind:
        torch.testing.assert_close(net.get_parameter(key).grad, whole[key].grad, rtol=0, atol=0)


def test_the_tail_uses_a_block_that_was_put_in_later():
    inputs = images()
    net = settled(CifarResNet())
    cut = cut_at(net, "layer2.1", inputs)
    entering = cut.prefix(inputs)
    before = cut.tail(entering)
    replace_block_(net, "layer2.1", nn.Conv2d(8, 8, 1))
    assert not torch.equal(cut.tail(entering), before)
    assert torch.equal(cut.tail(entering), net(inputs))
    assert torch.equal(cut.prefix(inputs), entering)


def test_a_cut_refuses_to_run_after_a_module_around_its_block_was_replaced():
    inputs = images()
    net = settled(CifarResNet())
    cut = cut_at(net, "layer2.1", inputs)
    entering = cut.prefix(inputs)
    replace_block_(net, "layer2", nn.Sequential(nn.Identity(), nn.Conv2d(4, 8, 3)))
    with pytest.raises(EngineError, match="layer2"):
        cut.tail(entering)


def test_the_prefix_runs_nothing_behind_the_cut_and_the_tail_nothing_before():
    inputs = images()
    net = settled(CifarResNet())
    cut = cut_at(net, "layer2.1", inputs)
    ran: list[str] = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_args, name=name: ran.append(name))
    entering = cut.prefix(inputs)
    assert {name.split(".")[0] for name in ran} == {"conv1", "bn1", "layer1", "layer2"}
    assert not any(name.startswith("layer2.1") for name in ran)
    ran.clear()
    cut.tail(entering)
    assert {name.split(".")[0] for name in ran} == {"layer2", "layer3", "linear"}
    assert not any(name.startswith("layer2.0") for name in ran)


def test_the_prefix_leaves_no_hook_behind_even_when_the_model_fails():
    net = settled(CifarResNet())
    cut = cut_at(net, "layer2.1", images())
    with pytest.raises(RuntimeError):
        cut.prefix(torch.randn(1, 5, 16, 16))
    assert not net.layer2[1]._forward_pre_hooks
    assert torch.isfinite(net(images())).all()


def test_train_and_eval_flags_are_respected_in_the_tail():
    net = Generated()
    cut = cut_at(settled(net), "layers.1", images())
    entering = cut.prefix(images())
    net.train()
    assert not torch.equal(cut.tail(entering), cut.tail(entering))
    assert net.layers[1].bn1.num_batches_tracked == 2
    assert net.layers[0].bn1.num_batches_tracked == 0


def test_a_hook_on_the_block_that_changes_its_input_runs_once():
    net = settled(CifarResNet())
    net.layer2[1].register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    assert_cuts_everywhere(net, images(), ["layer2.1"])


def test_a_block_that_begins_in_place_does_not_wear_its_input_away():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3)
    )
    cut = cut_at(net, "1", images())
    entering = cut.prefix(images())
    kept = entering.clone()
    assert torch.equal(cut.tail(entering), net(images()))
    assert torch.equal(entering, kept)


def test_what_flows_past_the_block_may_be_added_to_in_place():
    """As residual blocks do with their shortcut; in training autograd forbids that to some views."""
    net = AddsInPlace()
    cut = cut_at(net, "shortcut", images())
    with torch.no_grad():
        entering = cut.prefix(images())
    kept = entering.clone()
    cut.tail(entering).square().mean().backward()
    assert net.shortcut.weight.grad.abs().sum() > 0
    assert torch.equal(entering, kept)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (NeedsEarlierShape, "a value that was 3 is 2"),
        (LeavesNotes, "do not give what the whole gives"),
        (TakesAnotherWayInTraining, "under a condition"),
        (RunsTwice, "2 times"),
    ],
)
def test_what_cannot_be_proved_is_not_cut_and_says_why(kind, why):
    cut = cut_at(kind(), "conv2", images())
    assert isinstance(cut, NoCut)
    assert why in cut.reason


def test_what_flows_past_the_block_is_cut_along():
    net = SkipsPast().eval()
    assert_cuts_everywhere(net, images(), ["conv1", "conv2", "fc"])
    entering = cut_at(net, "conv2", images()).prefix(images())
    assert entering.shape == (3, 4, 14, 14), "what enters and what flows past is the same tensor here"


class GrowsAList(nn.Module):
    """A dense block as it is written by hand: every layer takes the list of all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Concatenates(3), Concatenates(7), Concatenates(11)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        features.append(self.layers[0](features))
        features.append(self.layers[1](features))
        features.append(self.layers[2](features))
        return torch.cat(features, 1)


class Concatenates(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.conv = nn.Conv2d(width, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(self.narrow(torch.cat(features, 1)))


def test_a_layer_that_takes_a_list_is_cut_with_all_the_list_holds():
    net = GrowsAList().eval()
    assert_cuts_everywhere(net, images(), ["layers.0", "layers.1", "layers.2"])
    assert cut_at(net, "layers.1", images()).prefix(images()).shape == (3, 7 * 16 * 16)


def test_a_prefix_refuses_what_it_was_not_cut_for():
    net = SkipsPast().eval()
    cut = cut_at(net, "fc", images())
    with pytest.raises(EngineError, match="another shape") as caught:
        cut.prefix(images(17))
    assert caught.value.code == "platform.stale_cut"


def test_a_forward_without_source_or_put_on_the_instance_is_not_cut():
    namespace: dict = {"PlainCnn": PlainCnn}
    source = "class Hidden(PlainCnn):\n    def forward(self, x):\n        return self.conv2(self.conv1(x))"
    exec(source, namespace)  # noqa: S102 - a class whose source nobody can read is what is tested
    assert isinstance(cut_at(namespace["Hidden"](), "conv2", images()), NoCut)
    net = PlainCnn()
    net.forward = lambda x: net.conv2(net.conv1(x))
    assert isinstance(cut_at(net, "conv2", images()), NoCut)


def test_unknown_names_and_modules_that_are_no_blocks_are_not_cut():
    assert isinstance(cut_at(CifarResNet(), "layer9", images()), NoCut)
    assert isinstance(cut_at(CifarResNet(), "", images()), NoCut)


def test_cutting_keeps_the_mode_and_statistics_of_the_model():
    net = CifarResNet()
    net.layer1[0].bn1.eval()
    flags = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    assert isinstance(cut_at(net, "layer2.0", images()), Cut)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_errors_inside_the_tail_point_at_the_real_source():
    net = settled(CifarResNet())
    cut = cut_at(net, "layer3", images())
    replace_block_(net, "layer3", nn.Conv2d(8, 5, 1))
    with pytest.raises(RuntimeError) as caught:
        cut.tail(cut.prefix(images()))
    frame = next(entry for entry in caught.traceback if entry.name == "forward" and "linear" in str(entry.statement))
    assert frame.path.name == "test_cut.py"

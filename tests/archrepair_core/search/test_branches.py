"""A branch beside any block of any family: the same function at first, and an archive that can be repaired again."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, ResNet, VisionTransformer, get_model
from torchvision.models.resnet import BasicBlock

from archrepair_core.blocks import Block, find_blocks
from archrepair_core.cut import Cut, cut_at
from archrepair_core.export import export_torchscript
from archrepair_core.ingest.model import IngestedModel, ingest_model
from archrepair_core.search.dag import Edge
from archrepair_core.search.genotype import Edit, Genotype, branch_beside, build_
from archrepair_core.search.operations import operations_for
from archrepair_core.search.primitives import primitives_for

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


class Plain(nn.Module):
    """No composite blocks: its layers are the blocks, and stay so when one of them has a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Recurring(nn.Module):
    """One layer with shared weights, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = torch.relu(x + self.layer(x))
        return x.mean((2, 3))


class TensorOrList(nn.Module):
    """A dense layer as timm writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 1)
        self.conv2 = nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, Tensor):  # noqa: SIM108  # the form that TorchScript takes
            features = [x]
        else:
            features = x
        return self.conv2(torch.relu(self.conv1(torch.cat(features, 1))))


class Dense(nn.Module):
    """Every layer is given the list of all answers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TensorOrList(3 + 4 * index) for index in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1).mean((2, 3))


Family = tuple[Callable[[], nn.Module], str, int]
# The model, the block that gets the branch, pixels.
FAMILIES: dict[str, Family] = {
    "plain": (Plain, "features.2", 12),
    "resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), "layer3.0", 32),
    "tensor or list": (Dense, "layers.1", 12),
    "densenet": (lambda: DenseNet(4, (2, 3), 8, 2, num_classes=4), "features.denseblock2.denselayer2", 32),
    "vit": (lambda: VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=4), "encoder.layers.encoder_layer_1", 16),
}
LARGE: dict[str, Family] = {
    name: (functools.partial(get_model, name, weights=None), block, 64)
    for name, block in {
        "densenet121": "features.denseblock3.denselayer9",
        "mobilenet_v3_small": "features.4",
        "shufflenet_v2_x0_5": "stage3.0",
        "squeezenet1_1": "features.7",
        "convnext_tiny": "features.5.4",
        "swin_t": "features.5.1",
        "regnet_y_400mf": "trunk_output.block3.block3-1",
        "vgg11": "features.8",
        "efficientnet_b0": "features.4.1",
    }.items()
}


def ingested(family: Family, kind: str, tmp_path) -> tuple[IngestedModel, Tensor]:
    make, _, size = family
    torch.manual_seed(0)
    net, inputs = make().eval(), torch.randn(3, 3, size, size)
    for parameter in net.parameters():
        if not parameter.any():  # a head of zeros hides everything before it
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        compiled = torch.jit.script(net) if kind == "script" else torch.jit.trace(net, inputs)
    compiled.save(tmp_path / "upload.pt")
    return ingest_model(tmp_path / "upload.pt", tmp_path), inputs


def blocks_of(model: nn.Module, inputs: Tensor) -> dict[str, Block]:
    return {block.name: block for block in find_blocks(model.eval(), inputs)}


def moves_(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        model.get_parameter(f"{name}.branch.scale").normal_()


def assert_a_branch_survives_the_way_round(family: Family, kind: str, tmp_path) -> None:
    upload, inputs = ingested(family, kind, tmp_path)
    model, name = upload.model.eval(), family[1]
    blocks, expected, before = blocks_of(model, inputs), model(inputs), model.state_dict()
    build_(model, Genotype((name,), (branch_beside(name, next(iter(primitives_for(blocks[name])))),)), blocks, seed=0)
    assert torch.equal(model(inputs), expected), "a new branch adds exact zeros"
    moves_(model, name)
    assert not torch.equal(model(inputs), expected)

    path = tmp_path / "repaired.pt"
    export = export_torchscript(model, path, inputs=inputs, original=upload.reference)
    changes = export.written.changes
    assert (export.note, changes.changed) == ("", ())
    assert all(key.startswith(f"{name}.") for key in (*changes.removed, *changes.added))
    again = ingest_model(path, tmp_path).model.eval()
    after = again.state_dict()
    for key in changes.removed:
        assert torch.equal(after[f"{name}.original{key.removeprefix(name)}"], before[key])
    torch.testing.assert_close(again(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    found = blocks_of(again, inputs)
    assert [found_name.replace(f"{name}.original.", f"{name}.") for found_name in found] == list(blocks)
    assert found[name].kind == "BlockWithBranch"
    assert found[name].input_shape == blocks[name].input_shape


@pytest.mark.parametrize("kind", ["script", pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_survives_the_way_round(family, kind, tmp_path):
    assert_a_branch_survives_the_way_round(FAMILIES[family], kind, tmp_path)


def test_a_module_called_three_times_gets_one_branch_for_all_calls(tmp_path):
    assert_a_branch_survives_the_way_round((Recurring, "layer", 12), "script", tmp_path)


def test_a_trace_that_calls_a_module_in_several_ways_offers_no_block_there(tmp_path):
    upload, inputs = ingested((Recurring, "layer", 12), "trace", tmp_path)
    assert "layer" not in blocks_of(upload.model, inputs)


@pytest.mark.models
@pytest.mark.parametrize("kind", ["script", "trace"])
@pytest.mark.parametrize("family", LARGE)
def test_a_branch_survives_the_way_round_in_real_networks(family, kind, tmp_path):
    assert_a_branch_survives_the_way_round(LARGE[family], kind, tmp_path)


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_a_dense_layer_with_a_branch_is_cut_and_trained_like_any_block(kind, tmp_path):
    upload, inputs = ingested(FAMILIES["densenet"], kind, tmp_path)
    model, name = upload.model.eval(), FAMILIES["densenet"][1]
    blocks = blocks_of(model, inputs)
    build_(model, Genotype((name,), (branch_beside(name, "bottleneck"),)), blocks, seed=0)
    moves_(model, name)
    cut = cut_at(model, name, inputs)
    assert isinstance(cut, Cut), cut
    assert torch.equal(cut.tail(cut.prefix(inputs)), model(inputs))
    cut.tail(cut.prefix(inputs).detach()).sum().backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert {key for key in trained if key.startswith(name)} == {
        f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters()
    }
    assert not any(key.startswith("features.denseblock1") for key in trained)


def cell_of(block: Block, *, keeps_original: bool) -> Edit:
    """Two ways over an intermediate node, and one past it."""
    operations = list(operations_for(block))
    edges = [("input", "1", operations[-2]), ("1", "output", operations[0]), ("input", "output", operations[-1])]
    kept = [Edge("input", "output", "original")] if keeps_original else []
    return Edit(block.name, (*kept, *(Edge(*edge) for edge in edges)))


def assert_a_cell_survives_the_way_round(family: Family, kind: str, tmp_path, *, keeps_original: bool) -> None:
    upload, inputs = ingested(family, kind, tmp_path)
    model, name = upload.model.eval(), family[1]
    blocks, expected = blocks_of(model, inputs), model(inputs)
    genotype = Genotype((name,), (cell_of(blocks[name], keeps_original=keeps_original),))
    build_(model, genotype, blocks, seed=0)
    assert torch.equal(model(inputs), expected) == keeps_original
    moves_(model, name)
    path = tmp_path / "repaired.pt"
    assert export_torchscript(model, path, inputs=inputs, original=upload.reference).note == ""
    again = ingest_model(path, tmp_path).model.eval()
    torch.testing.assert_close(again(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    found = blocks_of(again, inputs)
    assert name in found, list(found)
    build_(again, Genotype((name,), (cell_of(found[name], keeps_original=True),)), found, seed=1)
    torch.testing.assert_close(again(inputs), model(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["script", pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("keeps_original", [True, False])
@pytest.mark.parametrize(
    "family",
    [name if name in ("plain", "densenet") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_a_cell_survives_the_way_round_and_its_block_can_be_repaired_again(family, kind, keeps_original, tmp_path):
    assert_a_cell_survives_the_way_round(FAMILIES[family], kind, tmp_path, keeps_original=keeps_original)


def test_a_block_can_get_a_second_branch(tmp_path):
    upload, inputs = ingested(FAMILIES["densenet"], "script", tmp_path)
    model, name = upload.model.eval(), FAMILIES["densenet"][1]
    expected = model(inputs)
    for seed in (0, 1):
        blocks = blocks_of(model, inputs)
        build_(model, Genotype((name,), (branch_beside(name, "low_rank_1x1"),)), blocks, seed=seed)
    assert torch.equal(model(inputs), expected)
    moves_(model, name)
    assert not torch.equal(torch.jit.script(model)(inputs), expected)

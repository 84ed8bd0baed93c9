"""Flat models: their operators become blocks without one parameter changing its name."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archrepair_core.blocks import Block, find_blocks
from archrepair_core.calls import trace_calls
from archrepair_core.cut import Cut, cut_at
from archrepair_core.errors import ModelError
from archrepair_core.export import export_torchscript
from archrepair_core.ingest.model import ingest_model
from archrepair_core.runs import find_blocks_, make_runs_
from archrepair_core.search.genotype import Genotype, branch_beside, build_

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Flat(nn.Module):
    """Written with operators only: two convolutions around a residual one, batch-norm as an operator, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)
        self.mean = nn.Buffer(torch.randn(4) / 10)
        self.var = nn.Buffer(torch.rand(4) + 0.5)
        self.first = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.second = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.last = nn.Parameter(torch.randn(8, 4, 3, 3) / 6)
        self.head = nn.Parameter(torch.randn(5, 8))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.batch_norm(F.conv2d(x, self.stem), self.mean, self.var))
        y = F.relu(F.conv2d(x, self.first, padding=1))
        y = F.conv2d(y, self.second, padding=1)
        x = F.relu(x + y)
        x = F.conv2d(x, self.last, stride=2)
        x = F.relu(x)
        size = x.shape[2] * x.shape[3]
        x = x.sum((2, 3)) / size
        return F.linear(x, self.head, self.bias)


class PassesANumber(nn.Module):
    """Between its operators a number is all the rest needs beside the weights: no cut there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight)
        x = float(x.detach().sum())
        x = torch.full((2, 3), x)
        return F.linear(x, self.weight)


def images() -> Tensor:
    return torch.randn(3, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def blocks_of(model: nn.Module) -> dict[str, Block]:
    return {block.name: block for block in find_blocks_(model, images())}


EXPORTS = {
    "eager": lambda net, path: None,
    "script": lambda net, path: torch.jit.script(net).save(path),
    "trace": lambda net, path: torch.jit.trace(net, images()).save(path),
}


@pytest.fixture(params=EXPORTS)
def flat(request, tmp_path):
    torch.manual_seed(0)
    net = Flat().eval()
    path = tmp_path / "upload.pt"
    EXPORTS[request.param](net, path)
    return ingest_model(path, tmp_path).model.eval() if path.exists() else net


def test_runs_of_operators_become_blocks_and_nothing_else_changes(flat):
    expected, state = flat(images()), dict(flat.named_parameters())
    with pytest.raises(ModelError):
        find_blocks(flat, images())
    blocks = blocks_of(flat)
    assert list(blocks) == ["run_0", "run_1", "run_2", "run_3"]
    assert {block.kind for block in blocks.values()} == {"Run"}
    assert torch.equal(flat(images()), expected)
    assert dict(flat.named_parameters()) == state, "the same objects under the same names"


def test_a_run_knows_its_weights_shapes_and_cost(flat):
    block = blocks_of(flat)["run_1"]
    assert set(block.borrowed) == {"first", "second"}
    assert (block.input_shape, block.output_shape) == ((4, 8, 8), (4, 8, 8))
    assert block.num_params == 2 * 4 * 4 * 9
    assert block.macs == 8 * 8 * block.num_params
    assert 0 < block.latency_share < 1
    assert block.scope == (*block.borrowed, "run_1.branch")


def test_the_model_can_be_cut_at_every_run(flat):
    for name in blocks_of(flat):
        cut = cut_at(flat, name, images())
        assert isinstance(cut, Cut), cut
        assert torch.equal(cut.tail(cut.prefix(images())), flat(images()))


def test_training_a_run_behind_the_cut_reaches_the_parameters_of_the_host(flat):
    block = blocks_of(flat)["run_2"]
    cut = cut_at(flat, "run_2", images())
    cut.tail(cut.prefix(images()).detach()).sum().backward()
    assert all(flat.get_parameter(name).grad is not None for name in ("last", "head", "bias"))
    assert flat.get_parameter("second").grad is None
    assert "last" in block.borrowed


def test_a_run_with_a_branch_starts_as_the_same_function_and_comes_back_from_its_archive(flat, tmp_path):
    blocks, expected = blocks_of(flat), flat(images())
    original = copy.deepcopy(flat)
    build_(flat, Genotype(("run_1",), (branch_beside("run_1", "bottleneck"),)), blocks, seed=0)
    assert torch.equal(flat(images()), expected)
    with torch.no_grad():
        flat.get_parameter("run_1.branch.scale").fill_(0.5)
    assert not torch.equal(flat(images()), expected)
    path = tmp_path / "repaired.pt"
    export = export_torchscript(flat, path, inputs=images(), original=torch.jit.script(original))
    assert (export.note, export.written.changes.removed, export.written.changes.changed) == ("", (), ())
    again = ingest_model(path, tmp_path).model.eval()
    assert torch.equal(again(images()), flat(images()))
    assert list(blocks_of(again)) == list(blocks)
    assert blocks_of(again)["run_1"].kind == "BlockWithBranch"


def test_a_number_that_flows_on_ends_no_run():
    net = PassesANumber()
    inputs = torch.randn(2, 3)
    expected = net(inputs)
    assert len(make_runs_(net, inputs)) == 2
    assert torch.equal(net(inputs), expected)
    shapes = [call.output_shape for name, call in trace_calls(net, inputs).items() if name]
    assert shapes == [(3,), (3,)]


def test_a_model_of_modules_stays_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    find_blocks_(net, images())
    assert [name for name, _ in net.named_modules()] == ["", "0", "1", "2"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def test_an_archive_whose_modules_were_inlined_has_runs_under_the_names_of_their_parameters(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), Residual(), Residual(), nn.Flatten(), nn.Linear(256, 5)).eval()
    traced = torch.jit.trace(net, images())
    torch._C._jit_pass_inline(traced.graph)
    traced.save(tmp_path / "upload.pt")
    model = ingest_model(tmp_path / "upload.pt", tmp_path).model.eval()
    blocks = blocks_of(model)
    assert [{name for name in block.borrowed if name.endswith("weight")} for block in blocks.values()] == [
        {"0.weight"},
        {"1.conv.weight", "1.norm.weight"},
        {"2.conv.weight", "2.norm.weight"},
        {"4.weight"},
    ]
    assert torch.equal(model(images()), net(images()))
    assert model.state_dict().keys() == net.state_dict().keys()
    for name in blocks:
        assert isinstance(cut_at(model, name, images()), Cut)
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(images()), net(images()))


class BorrowsFromLayers(nn.Module):
    """Calls no layer: what a trace leaves of methods that were compiled themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.conv2d(x, self.conv.weight, self.conv.bias).mean([2, 3])
        return torch.nn.functional.linear(y, self.head.weight, self.head.bias)


def test_runs_that_borrow_the_optional_bias_of_a_layer_compile():
    torch.manual_seed(0)
    model, inputs = BorrowsFromLayers().eval(), torch.randn(2, 3, 8, 8)
    expected = model(inputs)
    assert len(make_runs_(model, inputs)) == 2
    assert torch.equal(torch.jit.script(model)(inputs), expected)

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.errors import EngineError
from archrepair_core.export import export_torchscript
from archrepair_core.export.parity import structure_of
from archrepair_core.ingest.decompile import decompile
from archrepair_core.ingest.graphs import nodes_of
from archrepair_core.ingest.verify import verify_decompiled


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.bn(self.conv(x))).mean([2, 3])))


INPUTS = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair(archived):
    torch.manual_seed(0)
    root, unit = archived(Net().eval())
    return root, decompile(root, unit)


@pytest.mark.parametrize("traced", [False, True])
def test_round_trip_keeps_answers_names_and_train_mode(traced, archived, load_pair, tmp_path):
    torch.manual_seed(0)
    root, unit = archived(Net().eval(), INPUTS if traced else None)
    module = decompile(root, unit)
    for round_ in range(2):
        path = tmp_path / f"{round_}.pt"
        check = export_torchscript(module, path, inputs=INPUTS, original=root)
        assert (check.method, check.note) == ("trace" if traced else "script", "")
        again, unit = load_pair(path)
        module = decompile(again, unit)
        assert verify_decompiled(again, module, INPUTS).max_abs_diff == 0
        assert torch.equal(module.eval()(INPUTS), root(INPUTS))
        assert list(module.state_dict()) == list(root.state_dict())
        assert isinstance(module.bn, nn.BatchNorm2d)
    module.train()
    assert not torch.equal(module(INPUTS), module(INPUTS))


def test_trained_resnet20_survives_two_round_trips(resnet20_path, load_pair, tmp_path):
    inputs = torch.randn(4, 3, 32, 32)
    root, unit = load_pair(resnet20_path)
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    changes = export_torchscript(decompile(root, unit), first, inputs=inputs, original=root).written.changes
    assert (changes.changed, changes.added, changes.removed) == ((), (), ())
    again = load_pair(first)
    export_torchscript(decompile(*again), second, inputs=inputs, original=root)
    last = torch.jit.load(second)
    assert torch.equal(last(inputs), root(inputs))
    assert list(last.state_dict()) == list(root.state_dict())
    assert last._c.qualified_name.endswith(".ResNet")
    assert "relu" in last.code


def test_changed_and_added_tensors_are_named(pair, tmp_path):
    root, module = pair
    with torch.no_grad():
        module.head.weight[0, 0] += 1e-6
    module._modules["drop"] = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    written = export_torchscript(module, tmp_path / "out.pt", inputs=INPUTS, original=root).written
    assert written.changes.changed == ("head.weight",)
    assert written.changes.added == ("drop.0.weight", "drop.0.bias")
    assert written.changes.removed == ()
    assert set(written.changes.unchanged) == set(root.state_dict()) - {"head.weight"}
    assert written.agreement.max_relative_diff <= 1e-5
    assert written.agreement.batch_sizes == (1, 3)


def test_module_keeps_its_mode_and_no_partial_file_stays(pair, tmp_path):
    root, module = pair
    module.train()
    module.bn.eval()
    export_torchscript(module, tmp_path / "out.pt", inputs=INPUTS, original=root)
    assert [module.training, module.bn.training, module.drop.training] == [True, False, True]
    assert not torch.jit.load(tmp_path / "out.pt").training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "out.pt"]


class Untyped(nn.Module):
    """Traceable, but nothing the TorchScript compiler takes."""

    def forward(self, x):
        return sum(part for part in {"a": x, "b": x}.values() if part is not None) / 2


def test_module_that_does_not_script_is_traced_and_says_why(pair, tmp_path):
    root, module = pair
    module._modules["drop"] = Untyped()
    check = export_torchscript(module, tmp_path / "out.pt", inputs=INPUTS, original=root)
    assert check.method == "trace"
    assert "Comprehension" in check.note
    assert "train mode is lost" in check.note
    assert torch.allclose(torch.jit.load(tmp_path / "out.pt")(INPUTS), root(INPUTS))


class TwoFaced(nn.Module):
    """Answers otherwise once it is compiled."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or torch.jit.is_tracing():
            return x * 1.0001
        return x


def test_file_that_answers_unlike_the_model_is_refused_and_not_left(pair, tmp_path):
    root, module = pair
    module._modules["drop"] = TwoFaced()
    with pytest.raises(EngineError) as caught:
        export_torchscript(module, tmp_path / "out.pt", inputs=INPUTS, original=root)
    assert caught.value.code == "platform.export_differs"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


class Wider(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


def test_answer_of_another_shape_is_refused(pair, tmp_path):
    root, module = pair
    module._modules["head"] = Wider()
    with pytest.raises(EngineError) as caught:
        export_torchscript(module, tmp_path / "out.pt", inputs=INPUTS, original=root)
    assert caught.value.code == "platform.signature_changed"
    assert "[1, 2]" in caught.value.detail
    assert "[1, 8]" in caught.value.detail


class Renamed(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image)


def test_argument_of_another_name_is_refused(pair, tmp_path):
    root, module = pair
    with pytest.raises(EngineError, match="'image': 'Tensor'") as caught:
        export_torchscript(Renamed(module), tmp_path / "out.pt", inputs=INPUTS, original=root)
    assert caught.value.code == "platform.signature_changed"


class Sized(nn.Module):
    """Straight code for the compiler, but a trace would keep the size it saw."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = int(x.size(2) * 0.5)
        return self.conv(x)[:, :, :half].mean([2, 3])


def test_straight_code_whose_trace_would_freeze_a_size_is_scripted(archived, tmp_path):
    root, unit = archived(Sized().eval())
    check = export_torchscript(decompile(root, unit), tmp_path / "out.pt", inputs=INPUTS, original=root)
    assert (check.method, check.note) == ("script", "")
    larger = torch.randn(2, 3, 10, 10)
    assert torch.equal(torch.jit.load(tmp_path / "out.pt")(larger), root(larger))


def operators(model: torch.jit.ScriptModule) -> Counter:
    return Counter(node.kind() for node in nodes_of(model.inlined_graph))


@pytest.mark.parametrize("traced", [False, True])
def test_kept_architecture_costs_hardly_an_operator_more(traced, resnet20_path, archived, load_pair, tmp_path):
    root, unit = load_pair(resnet20_path)
    inputs = torch.randn(2, 3, 32, 32)
    if traced:
        root, unit = archived(decompile(root, unit).eval(), inputs)
    export_torchscript(decompile(root, unit), tmp_path / "out.pt", inputs=inputs, original=root)
    before, after = operators(root), operators(torch.jit.load(tmp_path / "out.pt"))
    assert after.total() <= 1.003 * before.total(), after - before
    assert traced <= (after == before)


@pytest.mark.parametrize("answer", ["tuple", "dict", "named"])
def test_every_nesting_comes_back(make_subject, answer, inputs, tmp_path):
    subject = make_subject(answer)
    export_torchscript(subject.module, tmp_path / "out.pt", inputs=inputs, original=subject.original)
    reread = torch.jit.load(tmp_path / "out.pt")(inputs)
    assert structure_of(reread) == structure_of(subject.original(inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(make_subject, dtype, tmp_path):
    subject = make_subject(dtype=dtype)
    export_torchscript(subject.module, tmp_path / "out.pt", inputs=subject.batches[-1], original=subject.original)
    assert torch.jit.load(tmp_path / "out.pt").state_dict()["conv.weight"].dtype == dtype

import copy
import inspect
from typing import Dict, List, NamedTuple, Optional, Tuple  # noqa: UP035  # TorchScript reads these

import pytest
import torch
import torchvision
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.decompile import decompile
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.outputs import largest_difference, tensors_in
from archrepair_core.ingest.verify import verify_decompiled


class Small(nn.Module):
    """Convolution, batch-norm, dropout, a child called twice, and a linear head: 6 outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.mix = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        y = self.act(y + self.mix(y))
        return self.head(self.drop(y.mean([2, 3])))


class Functional(nn.Module):
    """Dropout as a function: a trace holds its training flag as a constant."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x.mean(3).flatten(1)[:, :12], 0.5, self.training))


class WithParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))


class Branch(WithParameter):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean([2, 3])
        if x.size(0) > 2:
            y = y * self.weight
        elif bool(y.sum() > 0):
            y = y + self.weight
        else:
            y = y - self.weight
        return y


class EarlyReturn(WithParameter):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean([2, 3]) * self.weight
        if x.size(0) == 1:
            return y
        for i in range(3):
            if i == 2:
                return y * 2
            y = y + i
        return y


class Loops(WithParameter):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean([2, 3])
        for i in range(x.size(0)):
            y = y + self.weight * i
        count = 0
        while count < 7 and float(y.abs().max()) < 50.0:
            y = y * 1.5
            count += 2
        for i in range(6, 0, -2):
            if i == 4:
                continue
            y = y - i
        return y * count


class Lists(WithParameter):
    sizes: List[int]  # noqa: UP006

    def __init__(self):
        super().__init__()
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        parts: List[Tensor] = []  # noqa: UP006
        for part in torch.split(x, 1, dim=1):
            parts.append(part.mean([2, 3]) * self.weight)
        shape = list(x.shape)[:1] + [9]  # noqa: RUF005
        y = torch.cat(parts[::-1], 1).reshape(shape)
        sizes = self.sizes.copy()
        sizes[0] = 7
        return y * len(self.sizes) + self.sizes[0] - sum(sizes)


class Pairs(WithParameter):
    def halves(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:  # noqa: UP006, UP045
        return x * self.weight, None

    def forward(self, x: Tensor) -> Tuple[Tensor, int, List[Tensor]]:  # noqa: UP006
        y, extra = self.halves(x.mean([2, 3]))
        if extra is not None:
            y = y + extra
        top, where = y.max(1)
        return y, x.size(0), [top, where]


class Dictionary(WithParameter):
    def forward(self, x: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        out = {"logits": x.mean([2, 3]) * self.weight}
        out['it\'s "quoted"\n'] = out["logits"].softmax(1)
        return out


class Arguments(WithParameter):
    def forward(
        self,
        x: Tensor,
        mask: Optional[Tensor] = None,  # noqa: UP045
        scale: float = 2.0,
        mode: str = "sum",
    ) -> Tensor:
        if mask is None:
            mask = torch.ones_like(x)
        if mode not in ["sum", "mean"]:
            raise ValueError("mode is {}".format(mode))  # noqa: UP032
        return (x * mask).mean([2, 3]) * self.weight * scale


class Numbers(WithParameter):
    def forward(self, x: Tensor) -> Tensor:
        n = (x.size(2) - 7) // 2 % 3
        big = max(max(n * n, -n), 3) if x.dim() == 4 and x.dtype == torch.float32 else 0
        y = x.clone()
        y[:, :, ::2] += float("inf") if n > 100 else big / 4
        y = torch.where(y > 1, y, torch.zeros([1], dtype=y.dtype))
        return (y.to(torch.float64).sum([2, 3]) / max(n, 1)).float() * self.weight


class Counter(nn.Module):
    calls: int

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        before = self.calls
        self.calls = self.calls + 1
        return x.mean([2, 3]) * self.weight * (self.calls - before)


class Listed(nn.Module):
    """Children in a list and a dict, under names that are no identifiers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(2)])
        self.named = nn.ModuleDict({"last-one": nn.Conv2d(3, 2, 1), "last": nn.GELU()})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        for layer in self.named.values():
            x = layer(x)
        return x.mean([2, 3])


CONSTRUCTS = [
    *(Small, Functional, Branch, EarlyReturn, Loops, Lists, Pairs, Dictionary, Arguments, Numbers, Counter, Listed)
]


@pytest.mark.parametrize("construct", CONSTRUCTS)
@torch.no_grad()
def test_scripted_construct_answers_as_its_archive_and_scripts_again(construct, archived):
    torch.manual_seed(1)
    root, unit = archived(construct().eval())
    module = decompile(root, unit)
    inputs = torch.randn(3, 3, 9, 8)
    assert verify_decompiled(root, module, inputs).max_abs_diff == 0
    scripted = torch.jit.script(module)
    for batch in (inputs[:1], inputs, inputs[:2].abs()):
        expected = root(batch)
        assert tensors_in(expected)
        assert largest_difference(module(batch), expected) == 0
        assert largest_difference(scripted(batch), expected) == 0
    assert list(scripted.state_dict()) == list(root.state_dict())


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_rebuilt_construct_can_be_saved_and_rebuilt_again(construct, archived):
    torch.manual_seed(1)
    inputs = torch.randn(3, 3, 9, 8)
    module = decompile(*archived(construct().eval()))
    root, unit = archived(module)
    again = decompile(root, unit)
    assert verify_decompiled(root, again, inputs).max_abs_diff == 0
    assert largest_difference(again(inputs[:1]), decompile(root, unit)(inputs[:1])) == 0
    assert list(again.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("construct", [Small, Functional, Lists, Pairs, Listed])
@torch.no_grad()
def test_traced_construct_answers_as_its_archive_and_scripts_again(construct, archived):
    torch.manual_seed(1)
    model = construct().eval()
    inputs = torch.randn(3, 3, 9, 8)
    root, unit = archived(model, inputs)
    module = decompile(root, unit)
    assert verify_decompiled(root, module, inputs).max_abs_diff == 0
    assert largest_difference(torch.jit.script(module)(inputs), root(inputs)) == 0


def test_defaults_of_arguments_are_kept(archived):
    root, unit = archived(Arguments())
    module = decompile(root, unit)
    inputs = torch.randn(2, 3, 4, 4)
    assert torch.equal(module(inputs), module(inputs, None, 2.0, "sum"))
    assert torch.equal(module(inputs, inputs, scale=3.0), root(inputs, inputs, scale=3.0))
    with pytest.raises(ValueError, match="mode is max"):
        module(inputs, mode="max")


@pytest.mark.parametrize("traced", [False, True])
def test_train_mode_updates_batch_norm_and_drops_as_the_eager_model_does(traced, archived):
    torch.manual_seed(0)
    model = Small().eval()
    inputs = torch.randn(4, 3, 9, 9)
    module = decompile(*archived(model, inputs if traced else None)).train()
    model.train()
    for step in range(2):
        torch.manual_seed(step)
        expected = model(inputs)
        torch.manual_seed(step)
        assert torch.allclose(module(inputs), expected, atol=1e-6)
    assert torch.equal(module.bn.running_var, model.bn.running_var)
    assert module.bn.num_batches_tracked == 2
    assert not torch.equal(module(inputs), module(inputs))


def test_functional_dropout_of_a_trace_drops_again_in_train_mode(archived):
    inputs = torch.randn(4, 3, 9, 9)
    module = decompile(*archived(Functional().eval(), inputs))
    assert torch.equal(module(inputs), module(inputs))
    module.train()
    assert not torch.equal(module(inputs), module(inputs))


def test_dropout_traced_in_train_mode_stays_as_deployed(archived):
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 9, 9)
    root, unit = archived(Functional().train(), inputs)
    module = decompile(root, unit).eval()
    assert not torch.equal(module(inputs), module(inputs))
    assert verify_decompiled(root, module, inputs).max_abs_diff == 0


def test_source_of_a_generated_class_can_be_read(archived):
    module = decompile(*archived(Small()))
    source = inspect.getsource(type(module))
    assert source.startswith("class Small(torch.nn.Module):")
    assert "self.conv(x)" in source
    assert source.count("self.act(") == 2


def test_qualified_names_come_back_when_scripted(archived):
    root, unit = archived(torchvision.models.resnet.BasicBlock(4, 4))
    scripted = torch.jit.script(decompile(root, unit))
    assert "__torch__.torchvision.models.resnet" in scripted._c.qualified_name
    assert scripted._c.qualified_name.endswith(".BasicBlock")


def test_names_flags_and_tied_weights_are_kept(archived):
    model = Small()
    model.tied = nn.Linear(4, 6)
    model.tied.weight = model.head.weight
    model.head.bias.requires_grad_(False)
    model.bn.eval()
    module = decompile(*archived(model))
    assert list(module.state_dict()) == list(model.state_dict())
    assert {name: m.training for name, m in module.named_modules()} == {
        name: m.training for name, m in model.named_modules()
    }
    assert {n: p.requires_grad for n, p in module.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert module.tied.weight is module.head.weight


def test_training_the_rebuilt_model_leaves_the_archive_alone(archived):
    root, unit = archived(Small())
    before = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    module = decompile(root, unit).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(4, 3, 9, 9)).sum().backward()
    optimizer.step()
    assert not torch.equal(module.head.weight, before["head.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in root.state_dict().items())


def test_copies_of_the_model_are_independent(archived):
    module = decompile(*archived(Small()))
    other = copy.deepcopy(module)
    nn.init.zeros_(other.head.weight)
    assert module.head.weight.abs().sum() > 0
    assert type(other) is type(module)


class Doubled(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * 2


@pytest.mark.parametrize("traced", [False, True])
def test_block_is_replaceable_and_hooks_fire(traced, archived):
    inputs = torch.randn(2, 3, 9, 9)
    module = decompile(*archived(Small().eval(), inputs if traced else None)).eval()
    fired = []
    for name in ("conv", "mix", "mix.0", "head"):
        module.get_submodule(name).register_forward_hook(lambda _, __, ___, name=name: fired.append(name))
    before = module(inputs)
    assert fired == ["conv", "mix.0", "mix", "head"]
    for name in ("conv", "mix", "mix.0", "head"):
        module.get_submodule(name)._forward_hooks.clear()
    module._modules["mix"] = Doubled(module.mix)
    after = module(inputs)
    assert not torch.equal(after, before)
    assert torch.equal(torch.jit.script(module)(inputs), after)


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Sorting()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(torch.relu, x)
        return self.inner(torch.jit.wait(future)) * self.weight


class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.text = "a,b"

    def forward(self, x: Tensor) -> Tensor:
        text = self.text.title()
        return x * len(text)


def test_every_unsupported_operator_is_listed_with_its_module(archived):
    with pytest.raises(ModelError) as caught:
        decompile(*archived(Unsupported()))
    assert caught.value.code == "model.operator_not_supported"
    for problem in ("prim::fork", "aten::wait", "aten::title in inner"):
        assert problem in caught.value.detail


def test_frozen_archive_is_refused(archived):
    frozen = torch.jit.freeze(torch.jit.script(Small().eval()))
    with pytest.raises(ModelError) as caught:
        decompile(*archived(frozen))
    assert caught.value.code == "model.frozen_graph"
    assert "torch.jit.freeze" in caught.value.hint


class Size(NamedTuple):
    height: int
    width: int


class Answer(NamedTuple):
    logits: Tensor
    size: Size


class Named(WithParameter):
    def forward(self, x: Tensor) -> Answer:
        return Answer(x * self.weight.sum(), Size(x.size(2), x.size(3)))


def test_named_tuples_keep_their_fields_and_names(tmp_path):
    torch.jit.save(torch.jit.script(Named()), str(tmp_path / "named.pt"))
    ingested = ingest_model(tmp_path / "named.pt", tmp_path)
    x = torch.randn(2, 3, 4, 5)
    answer = ingested.model(x)
    assert answer._fields == ("logits", "size")
    assert (answer.size.height, answer.size.width) == (4, 5)
    assert torch.equal(answer.logits, ingested.reference(x).logits)
    scripted = torch.jit.script(ingested.model)
    assert scripted(x).size.width == 5
    assert str(scripted.forward.schema).endswith("Answer")


class OnlyPredict(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    @torch.jit.export
    def predict(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_model_without_forward_is_refused_by_the_names_it_has(archived):
    with pytest.raises(ModelError, match="predict") as caught:
        decompile(*archived(OnlyPredict()))
    assert caught.value.code == "model.no_forward"


def vision_transformer():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10, attention_dropout=0.2)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def test_scripted_attention_is_the_real_class(archived):
    inputs = torch.randn(2, 3, 32, 32)
    root, unit = archived(vision_transformer())
    module = decompile(root, unit)
    attention = module.encoder.layers[0].self_attention
    assert type(attention) is nn.MultiheadAttention
    assert (attention.num_heads, attention.dropout, attention.batch_first) == (4, 0.2, True)
    assert verify_decompiled(root, module, inputs).max_abs_diff < 1e-6


@pytest.mark.parametrize("gradients", [False, True])
def test_traced_attention_can_be_trained(gradients, archived):
    inputs = torch.randn(2, 3, 32, 32)
    # Without gradients a trace holds a fused operator that has no derivative.
    with torch.set_grad_enabled(gradients):
        root, unit = archived(vision_transformer(), inputs)
    module = decompile(root, unit)
    parity = verify_decompiled(root, module, inputs)
    assert parity.max_abs_diff < 1e-5
    assert parity.untrained == ()
    assert torch.allclose(torch.jit.script(module)(inputs), module(inputs), atol=1e-5)


class Shapes(WithParameter):
    """A size that serves as a number and as a tensor, and arithmetic of sizes with a constant used twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0] * 3, x.shape[2] * x.shape[3] // 2, 2).sum((1, 2)) / x.shape[0]
        return y.reshape(-1, 3) * self.weight


def test_traced_shape_arithmetic_follows_the_batch(archived):
    root, unit = archived(Shapes(), torch.randn(2, 3, 4, 4))
    module = decompile(root, unit)
    assert verify_decompiled(root, module, torch.randn(5, 3, 6, 8)).max_abs_diff == 0
    # Only the size that divides a tensor needs to be one.
    assert inspect.getsource(type(module)).count("torch.tensor(") == 1
    assert torch.jit.script(module)(torch.randn(7, 3, 6, 8)).shape == (7, 3)


def randomised(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("traced", [False, True])
def test_resnet18_is_rebuilt_layer_by_layer(traced, archived):
    torch.manual_seed(0)
    model = randomised(torchvision.models.resnet18(weights=None))
    inputs = torch.randn(2, 3, 64, 64)
    root, unit = archived(model, inputs if traced else None)
    module = decompile(root, unit)
    parity = verify_decompiled(root, module, inputs)
    assert parity.max_abs_diff == 0
    assert parity.untrained == ()
    assert parity.num_trainable == len(list(model.parameters()))
    real = [(name, type(m)) for name, m in model.named_modules() if type(m).__module__.startswith("torch.nn")]
    assert real == [(name, type(m)) for name, m in module.named_modules() if type(m).__module__.startswith("torch.nn")]
    model.train()
    assert torch.allclose(module.train()(inputs), model(inputs), atol=1e-5)
    assert torch.equal(module.layer4[1].bn2.running_mean, model.layer4[1].bn2.running_mean)


def test_trained_resnet20_is_rebuilt(resnet20_path, load_pair):
    root, unit = load_pair(resnet20_path)
    module = decompile(root, unit)
    assert verify_decompiled(root, module, torch.randn(4, 3, 32, 32)).max_abs_diff == 0
    assert type(module.layer1[0]).__name__ == "BasicBlock"
    assert isinstance(module.layer3[2].bn2, nn.BatchNorm2d)

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.decompile import decompile
from archrepair_core.ingest.verify import verify_decompiled


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_() + x


class Staged(nn.Module):
    """Two stages and a head, and a second head that only training uses."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(Stage(), Stage())
        self.head = nn.Linear(3, 2)
        self.auxiliary = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.stages(x).mean([2, 3])
        answer = self.head(pooled)
        if self.training:
            answer = answer + self.auxiliary(pooled)
        return answer


@pytest.fixture
def pair(archived):
    torch.manual_seed(0)
    root, unit = archived(Staged().eval())
    return root, decompile(root, unit)


INPUTS = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_equal_models_pass_and_unused_heads_are_named(pair):
    parity = verify_decompiled(*pair, INPUTS)
    assert parity.max_abs_diff == 0
    assert parity.batch_sizes == (1, 3)
    assert parity.untrained == ("auxiliary.bias", "auxiliary.weight")
    assert parity.num_trainable == 12
    assert parity.num_state_entries == 18


def test_models_and_random_state_are_left_as_they_were(pair):
    root, module = pair
    module(INPUTS).sum().backward()
    module.train()
    module.stages[1].bn.eval()
    gradient = module.head.weight.grad.clone()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    verify_decompiled(root, module, INPUTS)
    assert torch.rand(1) == expected
    assert [module.training, module.stages[0].bn.training, module.stages[1].bn.training] == [True, True, False]
    assert torch.equal(module.head.weight.grad, gradient)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in root.parameters())


def test_innermost_differing_module_is_named(pair):
    root, module = pair
    module.stages[1].bn.eps = 0.1
    with pytest.raises(ModelError, match=r"submodule 'stages.1.bn' differs first, by 0\.") as caught:
        verify_decompiled(root, module, INPUTS)
    assert caught.value.code == "model.not_reproducible"


def test_module_that_raises_is_named_with_its_error(pair):
    root, module = pair
    module.stages[1].conv.stride = "two"
    with pytest.raises(ModelError, match=r"submodule 'stages.1.conv' fails: TypeError"):
        verify_decompiled(root, module, INPUTS)


def test_difference_at_one_batch_size_is_found(pair):
    root, module = pair

    class Batched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return pair_head(x) + float(len(x) == 1)

    pair_head = module.head.forward
    module.head.forward = Batched().forward
    with pytest.raises(ModelError, match="submodule 'head'"):
        verify_decompiled(root, module, INPUTS)


def test_missing_tensor_is_named(pair):
    root, module = pair
    module.head.bias = None
    with pytest.raises(ModelError, match=r"lacks \['head.bias'\]"):
        verify_decompiled(root, module, INPUTS)


def test_lost_gradient_is_named(pair):
    root, module = pair
    module.stages[0].conv.register_forward_hook(lambda _, __, output: output.detach())
    with pytest.raises(ModelError, match=r"2 parameters lost their gradient, among them 'stages.0.conv.bias'"):
        verify_decompiled(root, module, INPUTS)


class Picky(Staged):
    def forward(self, x: Tensor) -> Tensor:
        assert x.size(2) == 7, "expected height 7"
        return self.head(x.mean([2, 3]))


def test_archive_that_raises_on_purpose_says_so(archived):
    root, unit = archived(Picky().eval())
    with pytest.raises(ModelError, match="AssertionError: expected height 7") as caught:
        verify_decompiled(root, decompile(root, unit), INPUTS)
    assert caught.value.code == "model.fails_on_inputs"


def test_archive_that_cannot_run_is_the_users_to_mend(archived):
    root, unit = archived(Staged().eval())
    with pytest.raises(ModelError) as caught:
        verify_decompiled(root, decompile(root, unit), torch.randn(2, 7, 5, 5))
    assert caught.value.code == "model.fails_on_inputs"
    assert "[1, 7, 5, 5]" in caught.value.detail

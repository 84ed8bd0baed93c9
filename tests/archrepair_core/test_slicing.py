import functools

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.slicing import Unsliceable, rests_after

SCALE = 3.0


def unchanged(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)

    return call


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.block = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([self.block, nn.Linear(2, 2)])
        self.factor = 2.0


class Inlined(Host):
    """Everything in one expression, with a global, an attribute and a default of forward behind the call."""

    def forward(self, x: Tensor, offset: float = 1.0) -> Tensor:
        return torch.relu(self.block(self.stem(x))) * SCALE * self.factor + offset


class KeepsConstants(Host):
    def forward(self, x: Tensor) -> Tensor:
        low = 1
        axes = (low, -1)
        width = self.factor
        x = self.block(self.stem(x))
        kept = x.unsqueeze(axes[0])
        for _ in range(2):
            kept = kept * width
        return kept.sum(axes[1])


class Delegates(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x)

    def outer(self, x: Tensor) -> Tensor:
        y = self.inner(self.stem(x))
        return y + 1

    def inner(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x * 2


class BranchesAfter(Host):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.training:
            y = x * 2
        elif self.factor < 0:
            raise ValueError(self.factor)
        else:
            y = x
        return y


class WritesInOneBranch(Host):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        x = self.block(x)
        if self.training:
            y = x
        return y


class AddsOnto(Host):
    def forward(self, x: Tensor) -> Tensor:
        x += self.block(x)
        return x


class CallsUnderCondition(Host):
    def forward(self, x: Tensor) -> Tensor:
        if self.factor > 0:
            x = self.block(x)
        return x


class CallsInConditionalExpression(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if self.factor > 0 else x


class ReturnsBefore(Host):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.stem(x)
        x = self.block(x)
        return x


class CallsTwice(Host):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return self.block(x)


class MutatesItsConstant(Host):
    def forward(self, x: Tensor) -> Tensor:
        axes = [0]
        axes[0] = x.ndim - 1
        x = self.block(x)
        return x.sum(axes)


class BreaksItsLoop(Host):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            if self.factor > 0:
                break
        return x


class PassesTwoArguments(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, 2)

    def inner(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return self.block(x) * factor


class Decorated(Host):
    @unchanged
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class CallsItsParent(Inlined):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Aliases(Host):
    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        return block(x)


class UsesPrivateNames(Host):
    def forward(self, x: Tensor) -> Tensor:
        return self.__double(self.block(x))

    def __double(self, x: Tensor) -> Tensor:
        return x * 2


def go_on(host, answer, kept):
    for rest in rests_after(host, host.block):
        answer = rest.run(host, answer, {need: kept[need] for need in rest.needs})
    return answer


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (Inlined, {"offset": 1.0}),
        (KeepsConstants, {}),
        (Delegates, {}),
        (BranchesAfter, {}),
        (PassesTwoArguments, {"factor": 2}),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_rest_after_the_answer_is_the_forward(kind, kept, training):
    host, x, answers = kind().train(training), torch.randn(3, 2), []
    host.block.register_forward_hook(lambda _module, _args, output: answers.append(output))
    expected = host(x)
    assert torch.equal(go_on(host, answers[0], kept), expected)
    assert len(answers) == 1, "the rest must not run the block again"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (CallsUnderCondition, "under a condition"),
        (CallsInConditionalExpression, "under a condition"),
        (ReturnsBefore, "under a condition"),
        (CallsTwice, "2 times"),
        (BreaksItsLoop, "loop"),
        (Decorated, "not a plain method"),
        (CallsItsParent, "not a plain method"),
        (Aliases, "0 times"),
        (UsesPrivateNames, "private names"),
    ],
)
def test_a_forward_that_cannot_be_continued_says_why(kind, why):
    host = kind()
    with pytest.raises(Unsliceable, match=why):
        rests_after(host, host.block)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [(KeepsConstants, ()), (WritesInOneBranch, ("y",)), (AddsOnto, ("x",)), (MutatesItsConstant, ("axes",))],
)
def test_locals_that_are_no_constants_must_be_kept(kind, needs):
    host = kind()
    (rest,) = rests_after(host, host.block)
    assert rest.needs == needs
    assert rest.code is kind.forward.__code__


def test_the_rest_does_not_add_names_to_the_module_it_came_from():
    before = set(globals())
    host = Inlined()
    go_on(host, torch.zeros(1, 2), {"offset": 0.0})
    assert set(globals()) == before

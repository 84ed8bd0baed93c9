from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.errors import ArchRepairError
from archrepair_core.interface import (
    Interface,
    adapt_,
    find_logits,
    read_interface,
    restore_,
    round_,
    tensors_by_path,
)


class Answer(NamedTuple):
    features: Tensor
    logits: Tensor


FEATURES, LOGITS = torch.rand(4, 2, 3), torch.rand(4, 5)


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (LOGITS, "output"),
        ((FEATURES, LOGITS), "1"),
        (Answer(FEATURES, LOGITS), "logits"),
        ({"a": {"b": [FEATURES, LOGITS]}}, "a.b.1"),
        ((LOGITS.long(), torch.rand(3, 5), torch.rand(4, 1), LOGITS), "3"),
    ],
)
def test_the_only_output_that_can_be_logits_is_found(answer, path):
    assert find_logits(answer, "auto", num_inputs=4) == path
    assert tensors_by_path(answer)[path] is LOGITS


@pytest.mark.parametrize(
    ("answer", "asked", "code", "words"),
    [
        ((LOGITS, LOGITS), "auto", "model.output_ambiguous", ["'0'", "'1'"]),
        ({"a": LOGITS}, "b", "spec.unknown_output", ["'b'", "'a'"]),
        ({"a": LOGITS, "b": FEATURES}, "b", "model.output_not_logits", ["[4, 2, 3]"]),
        (LOGITS[:2], "auto", "model.output_not_logits", ["[2, 5]"]),
        ("text", "auto", "model.output_not_logits", ["str"]),
    ],
)
def test_what_is_no_logits_is_said(answer, asked, code, words):
    with pytest.raises(ArchRepairError) as error:
        find_logits(answer, asked, num_inputs=4)
    assert error.value.code == code
    assert all(word in error.value.detail for word in words)
    assert error.value.hint


class Insists(nn.Linear):
    """Half inside, whatever its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.half(), self.weight.half(), self.bias) * self.weight.new_ones(1).half()


def interface_of(model: nn.Module, inputs: Tensor) -> Interface:
    return read_interface(model, model(inputs), asked="auto", num_inputs=len(inputs))


def test_half_weights_are_trained_in_float32_and_delivered_in_half():
    model = nn.Linear(3, 4).half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    interface = interface_of(model, torch.rand(2, 3).half())
    weight = model.weight
    adapt_(model, interface, torch.rand(2, 3))
    assert model(torch.rand(2, 3)).dtype == torch.float32
    with torch.no_grad():
        model.weight.add_(1e-5)
    round_(model, interface)
    assert torch.equal(model.weight, model.weight.half().float())
    restore_(model, interface)
    assert model.weight is weight
    assert model.weight.dtype == torch.float16
    assert torch.equal(model.bias, before["bias"])
    assert model(torch.rand(2, 3).half()).dtype == torch.float16


def test_a_forward_that_insists_on_half_keeps_it():
    model = Insists(3, 4).half()
    adapt_(model, interface_of(model, torch.rand(2, 3).half()), torch.rand(2, 3))
    assert model.weight.dtype == torch.float16
    assert model(torch.rand(2, 3)).dtype == torch.float16

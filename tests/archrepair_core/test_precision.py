"""bfloat16 where it gains, and only there."""

import time

import pytest
import torch
from torch import nn

from archrepair_core.precision import MIN_SECONDS, NUM_SCREENED, autocast, bfloat16_gain, resolve_precision


@pytest.mark.parametrize(("gain", "expected"), [(0.0, "float32"), (1.4, "float32"), (2.0, "bfloat16")])
def test_a_small_gain_is_not_worth_coarser_numbers(gain, expected):
    assert resolve_precision(gain) == expected


def test_a_model_that_cannot_run_in_bfloat16_gains_nothing():
    class Float32Only(nn.Linear):
        def forward(self, inputs):
            answer = super().forward(inputs)
            if answer.dtype != torch.float32:
                raise RuntimeError("not implemented for 'BFloat16'")
            return answer

    assert bfloat16_gain(Float32Only(4, 2), torch.rand(3, 4)) == 0.0


def test_a_processor_that_emulates_bfloat16_is_told_by_a_few_inputs():
    sizes = []

    class Emulated(nn.Linear):
        def forward(self, inputs):
            sizes.append(len(inputs))
            if torch.is_autocast_enabled("cpu"):
                time.sleep(2 * MIN_SECONDS)
            return super().forward(inputs)

    assert bfloat16_gain(Emulated(4, 2), torch.rand(32, 4)) < 0.5
    assert max(sizes) == NUM_SCREENED, "a whole batch would take a minute"


def test_measuring_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    net[1].train()
    assert bfloat16_gain(net, torch.rand(3, 4)) == 1.0, "too short to tell"
    assert net[1].training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_autocast_computes_in_the_precision_asked_for():
    net, inputs = nn.Linear(4, 4), torch.rand(3, 4)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert net(inputs).dtype == dtype

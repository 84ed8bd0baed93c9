"""Weights go towards reduced models that are right and away from those that are wrong."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.prefix_cache import INPUT
from archrepair_core.repairers import apricot
from archrepair_core.repairers.apricot import RATE, adapt_weights, adjust_, parameters_of, train_reduced
from tests.archrepair_core.repairers.arenas import accuracy, arena_of, damaged_net, quadrants, soon


def single(value):
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(value)
        net.bias.fill_(-value)
    return net


@pytest.mark.parametrize(
    ("right", "moved"),
    [([1, 1, 1], 1 / 3 * (10 + 20 + 60) - 2), ([0, 0, 0], -(30 - 2)), ([1, 0, 1], 2 / 3 * (35 - 2) - 1 / 3 * (20 - 2))],
)
def test_one_failing_input_moves_the_weight_by_the_rate_times_the_shares(right, moved):
    net, reduced = single(2.0), [parameters_of(single(value)) for value in (10.0, 20.0, 60.0)]
    adjust_(net, reduced, torch.tensor(right, dtype=torch.bool)[:, None])
    assert net.weight.item() == pytest.approx(2 + RATE * moved)
    assert net.bias.item() == pytest.approx(-2 - RATE * moved)


def test_failing_inputs_are_taken_one_after_the_other():
    right_RF = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool)
    together, step_by_step = single(2.0), single(2.0)
    reduced = [parameters_of(single(value)) for value in (10.0, -7.0)]
    adjust_(together, reduced, right_RF)
    for column in range(3):
        adjust_(step_by_step, reduced, right_RF[:, column : column + 1])
    assert together.weight.item() == pytest.approx(step_by_step.weight.item())


def test_reduced_models_differ_and_end_with_the_time(tmp_path, monkeypatch):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 80, seed=5))
    training = arena.starts["original"].features(INPUT, "training")
    failing = training.subset(np.flatnonzero(~training.passing_N))
    assert len(train_reduced(arena, failing, epochs=1, until=soon(-1))[0]) == 2
    monkeypatch.setattr(apricot, "NUM_REDUCED", 3)
    weights_R, right_RF = train_reduced(arena, failing, epochs=1, until=soon())
    assert len(weights_R) == 3
    assert right_RF.shape == (3, len(failing))
    assert not torch.equal(weights_R[0]["1.weight"], weights_R[1]["1.weight"])


def test_asking_the_reduced_models_takes_from_the_time_they_are_trained_in(tmp_path, monkeypatch):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 80, seed=5))
    training, asked = arena.starts["original"].features(INPUT, "training"), apricot._right
    monkeypatch.setattr(apricot, "_right", lambda *args: time.sleep(0.5) or asked(*args))
    weights_R, _ = train_reduced(arena, training.subset(np.arange(4)), epochs=1, until=soon(1.2))
    assert 2 <= len(weights_R) <= 3


def test_the_damaged_network_is_adapted(tmp_path, monkeypatch):
    monkeypatch.setattr(apricot, "NUM_REDUCED", 3)
    told, net = [], damaged_net()
    arena = arena_of(net, tmp_path, told=told, limits={"distillation": 0}, replay=quadrants("replay", 80, seed=5))
    (trial,) = adapt_weights(arena, [], level="auto", deadline=soon(), epochs=15)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trial.model, test) > accuracy(net, test) + 0.1
    assert sum("iteration 1: step" in message for message in told) > 0
    assert [message for message in told if message.startswith("iteration 1 of 3")]
    assert trial.genotype.scope == ("",)
    assert trial.score.accuracy >= 0.75

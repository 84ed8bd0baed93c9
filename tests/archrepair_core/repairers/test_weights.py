"""The levels of the empirical study: the part with the largest gradients is trained, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from archrepair_core.repairers.weights import blamed_layer, blamed_neurons, fine_tune
from tests.archrepair_core.repairers.arenas import DAMAGED_NEURON, accuracy, arena_of, damaged_net, quadrants, soon


def test_failing_inputs_blame_the_damaged_neuron(tmp_path):
    """The head outweighs the hidden layer here eightfold, so the layer is the first and the neuron the damaged one."""
    arena = arena_of(damaged_net(), tmp_path)
    assert list(blamed_layer(arena)) == ["1"]
    neurons = blamed_neurons(arena)
    assert {name: list(chosen) for name, chosen in neurons.items()} == {"1": [DAMAGED_NEURON]}


@pytest.mark.parametrize("level", ["layer", "neuron"])
def test_a_level_trains_its_part_and_leaves_the_rest_bit_for_bit(tmp_path, level):
    net = damaged_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    arena = arena_of(net, tmp_path, limits={"distillation": 0})
    (trial,) = fine_tune(arena, ["1"], level=level, deadline=soon(), epochs=60)
    after = trial.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.weight", "1.bias"}
    rows = [row for row in range(4) if not torch.equal(before["1.weight"][row], after["1.weight"][row])]
    assert rows == ([DAMAGED_NEURON] if level == "neuron" else [0, 1, 2, 3])
    test = quadrants("test", 200, seed=9)
    assert accuracy(net, test) == 0.75
    assert accuracy(trial.model, test) > 0.95
    assert trial.genotype.scope == ("1",)
    assert all(np.isfinite(trial.run.losses))


def test_stopped_before_it_begins_a_level_has_no_trial(tmp_path):
    arena = replace(arena_of(damaged_net(), tmp_path), stopped=lambda: True)
    assert fine_tune(arena, ["1"], level="neuron", deadline=soon(), epochs=1) == []

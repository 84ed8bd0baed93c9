"""The search names the damaged weights, mends them, and ends when it is asked to."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from archrepair_core.checkpoint import open_checkpoints
from archrepair_core.localize.influence import Influence
from archrepair_core.repairers import arachne
from archrepair_core.repairers.arachne import Places, blame, blamed_weights, pareto_front, search_weights
from tests.archrepair_core.repairers.arenas import DAMAGED_NEURON, accuracy, arena_of, damaged_net, quadrants, soon


def test_the_front_is_what_nothing_else_exceeds():
    costs = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [2.0, 1.0], [1.0, 1.0], [3.0, 0.5], [0.0, 3.0]])
    assert pareto_front(costs).tolist() == [0, 1, 2]


def test_what_passing_inputs_depend_on_is_blamed_less():
    failing = Influence(torch.tensor([4.0, 4.0]), torch.tensor([1.0, 1.0]))
    passing = Influence(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0]))
    assert blame(failing, passing).tolist() == [[4.0, 0.5], [1.0, 1.0]]


def test_places_read_what_they_wrote_and_nothing_else_moves():
    net = damaged_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    places = Places({"1": np.array([0, 70]), "3": np.array([5])})
    values = np.array([0.25, -1.0, 2.0])
    places.write_(net, values)
    assert places.read(net).tolist() == values.tolist()
    places.write_(net, np.array([before["1.weight"].flatten()[0], before["1.weight"].flatten()[70],
                                 before["3.weight"].flatten()[5]]))  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_damaged_neuron_is_on_the_front_and_mended(tmp_path):
    told = []
    net = damaged_net()
    arena = arena_of(net, tmp_path, told=told)
    # A neuron's way to its class is its incoming weights and the one that carries it on.
    names = {
        name: {divmod(int(at), 64 if name == "1" else 4) for at in found}
        for name, found in blamed_weights(arena).by_layer.items()
    }
    assert {row for row, _ in names.get("1", ())} | {column for _, column in names.get("3", ())} >= {DAMAGED_NEURON}
    (trial,) = search_weights(arena, [], level="auto", deadline=soon(), epochs=12)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trial.model, test) > accuracy(net, test) + 0.1
    assert set(trial.genotype.scope) == set(names)
    costs = trial.run.losses
    assert list(costs) == sorted(costs, reverse=True), "the best only gets better"
    assert 0 <= costs[-1] < 50 / (45 + 10 * 15), "45 passing inputs count one each, 15 failing ones ten"
    assert trial.run.steps >= 100 * len(costs)
    assert any("of the highest fitness" in message for message in told)


def test_the_same_seed_finds_the_same_and_no_time_finds_the_original(tmp_path):
    arena = arena_of(damaged_net(), tmp_path)
    first, second = (search_weights(arena, [], level="auto", deadline=soon(), epochs=2)[0] for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )
    (trial,) = search_weights(arena, [], level="auto", deadline=soon(-1), epochs=None)
    assert trial.run.steps == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(trial.model.state_dict().values(), damaged_net().state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("after", [0, 30])
def test_a_stopped_search_runs_no_candidate_more(tmp_path, after):
    calls = []
    arena = replace(arena_of(damaged_net(), tmp_path), stopped=lambda: calls.append(1) or len(calls) > after)
    trials = search_weights(arena, [], level="auto", deadline=soon(600), epochs=None)
    assert [trial.run.steps < 40 for trial in trials] == [True] * (after > 0)


def test_where_time_is_over_one_batch_of_either_side_decides_what_is_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(arachne, "OBSERVED_BATCH", 1)
    arena, seen = arena_of(damaged_net(), tmp_path), []
    observed = arachne.measure_influence

    def counting(model, batches, layers):
        batches = list(batches)
        seen.append(len(batches))
        return observed(model, batches, layers)

    monkeypatch.setattr(arachne, "measure_influence", counting)
    blamed_weights(arena)
    assert len(blamed_weights(arena, until=soon(-1)))
    assert seen == [15, 15, 1, 1]


def test_a_slow_network_is_blamed_within_the_time_of_the_search(tmp_path, monkeypatch):
    """Each of its 30 observations takes a twentieth of a second twice, for two passes through the layer."""
    monkeypatch.setattr(arachne, "OBSERVED_BATCH", 1)
    arena, passes = arena_of(damaged_net(), tmp_path), []

    def slow(_module, _args):
        passes.append(torch.is_grad_enabled())
        time.sleep(0.05)

    handle = arena.starts["original"].model[1].register_forward_pre_hook(slow)
    search_weights(arena, [], level="auto", deadline=soon(1), epochs=None)
    handle.remove()
    assert sum(passes) < 20


def test_a_search_that_was_interrupted_goes_on_from_its_last_generation(tmp_path):
    def searched(generations, deadline):
        checkpoints = open_checkpoints(tmp_path, every_seconds=0)
        arena = replace(arena_of(damaged_net(), tmp_path), checkpoints=checkpoints)
        (trial,) = search_weights(arena, [], level="auto", deadline=deadline, epochs=generations)
        return trial

    first, second = searched(3, soon()), searched(6, soon())
    assert second.run.losses[:3] == first.run.losses
    assert len(second.run.losses) == 6
    assert second.run.steps == first.run.steps + 100 * (1 + 3), "the population it had, and three more generations"
    third = searched(6, soon(-1))
    assert third.run.losses == second.run.losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(third.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )

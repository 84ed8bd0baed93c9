"""The relaxed block: a weighted sum of all operations, of which single ones can be left out."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from archrepair_core.blocks import Block
from archrepair_core.errors import EngineError
from archrepair_core.optimizers import make_optimizers
from archrepair_core.search.dag import Edge
from archrepair_core.search.derive import DERIVATIONS, without_dead_ends
from archrepair_core.search.genotype import Edit
from archrepair_core.search.operations import FEATURE_OPERATIONS, IMAGE_OPERATIONS
from archrepair_core.search.supernet import TRAINED_SHARE, Supernet, relax


def block_of(entered, left):
    return Block("body", "Residual", entered, left, 10, 10, 0.5, 0, "block", arguments=("input",))


def relaxed_linear(channels=4):
    torch.manual_seed(0)
    return relax(nn.Linear(channels, channels), block_of((channels,), (channels,)), seed=0)


@pytest.mark.parametrize(
    ("entered", "left", "operations"),
    [
        ((6, 8, 8), (6, 8, 8), IMAGE_OPERATIONS),
        ((6, 9, 9), (10, 5, 5), IMAGE_OPERATIONS),
        ((5, 12), (5, 12), FEATURE_OPERATIONS),
        ((12,), (7,), FEATURE_OPERATIONS),
    ],
)
def test_every_edge_bridges_the_block_with_every_operation(entered, left, operations):
    supernet = relax(nn.Identity(), block_of(entered, left), seed=0).get_submodule("branch")
    assert isinstance(supernet, Supernet)
    assert supernet(torch.randn(2, *entered)).shape == (2, *left)
    assert len(supernet.ends) == 6, "two nodes between input and output"
    for source, target, _ in supernet.ends:
        expected = {*operations, "none"} | ({"original"} if (source, target) == ("input", "output") else set())
        assert set(supernet.mixed(source, target).names) == expected


def test_at_first_the_trained_block_leads_what_is_new_is_alike_and_the_alphas_get_gradients_and_adam():
    cell = relaxed_linear()
    for edge, shares in cell.get_submodule("branch").shares().items():
        leading = shares.pop("original" if edge == "input → output" else "none")
        assert leading == TRAINED_SHARE
        assert set(shares.values()) == {round((1 - leading) / len(shares), 4)}
    cell(torch.randn(3, 4)).square().sum().backward()
    alphas = {name: parameter for name, parameter in cell.named_parameters() if name.endswith(".alphas")}
    assert len(alphas) == 6
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in alphas.values())
    _, adam = make_optimizers(cell, ("",), 0.1)
    assert {id(p) for group in adam.param_groups for p in group["params"]} == set(map(id, alphas.values()))


def test_with_the_original_alone_the_supernet_is_the_original():
    cell, x = relaxed_linear(), torch.randn(3, 4)
    supernet = cell.get_submodule("branch")
    with ExitStack() as chosen:
        for source, target, _ in supernet.ends:
            names = ["original"] if (source, target) == ("input", "output") else []
            chosen.enter_context(supernet.mixed(source, target).only(names))
        assert torch.allclose(cell(x), cell.get_submodule("original")(x))
    assert not torch.allclose(cell(x), cell.get_submodule("original")(x))


def test_the_same_seed_gives_the_same_supernet_and_the_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    cells = [relax(nn.Identity(), block_of((6,), (6,)), seed=5).state_dict() for _ in range(2)]
    assert all(torch.equal(cells[0][name], cells[1][name]) for name in cells[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_block_that_nothing_bridges_is_refused():
    with pytest.raises(EngineError, match="no operation leads"):
        relax(nn.Identity(), block_of((6, 8, 8), (10,)), seed=0)


def test_argmax_takes_the_strongest_operation_per_edge_but_none_and_two_edges_per_node():
    supernet = relaxed_linear().get_submodule("branch")
    wanted = {("input", "1"): "adapter", ("1", "2"): "low_rank", ("2", "output"): "skip_connect"}
    wanted[("input", "output")] = "original"
    with torch.no_grad():
        for ends, operation in wanted.items():
            mixed = supernet.mixed(*ends)
            mixed.alphas.zero_()
            mixed.alphas[mixed.names.index(operation)] = 2.0
            mixed.alphas[mixed.names.index("none")] = 3.0
    edges = DERIVATIONS["argmax"](supernet, lambda: 0.0)
    found = {(edge.source, edge.target): edge.operation for edge in edges}
    assert wanted.items() <= found.items()
    assert ("1", "output") not in found, "the weakest of three edges into the output"
    assert Edit("body", tuple(edges)).keeps_original


def test_perturbation_keeps_what_the_loss_misses_most_whatever_the_alphas_say():
    supernet = relaxed_linear().get_submodule("branch")
    wanted = {("input", "output"): "original", ("2", "output"): "low_rank", ("input", "2"): "adapter"}

    def loss():
        assert all("none" in supernet.mixed(*ends[:2]).active for ends in supernet.ends), (
            "no edge counts more than before"
        )
        actives = {ends: supernet.mixed(*ends).active for ends in wanted}
        return sum(operation not in actives[ends] for ends, operation in wanted.items())

    edges = DERIVATIONS["perturbation"](supernet, loss)
    assert wanted.items() <= {(edge.source, edge.target): edge.operation for edge in edges}.items()
    assert all(supernet.mixed(*ends[:2]).active == supernet.mixed(*ends[:2]).names for ends in supernet.ends)


def test_edges_into_nothing_and_out_of_nothing_are_dropped():
    edges = [Edge("input", "1", "a"), Edge("1", "2", "b"), Edge("input", "output", "c")]
    assert list(without_dead_ends(edges)) == [edges[2]]

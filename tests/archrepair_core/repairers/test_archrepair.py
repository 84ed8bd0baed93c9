"""What the paper's method searches, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from archrepair_core.blocks import Block
from archrepair_core.errors import ArchRepairError
from archrepair_core.repairers import archrepair
from archrepair_core.repairers.archrepair import carried_weights, layer_of, search_cell, within_limits
from archrepair_core.search.dag import Edge
from archrepair_core.search.genotype import Edit, Genotype, build_
from archrepair_core.search.supernet import relax
from archrepair_core.search.trials import Arena
from archrepair_core.spec import Repair
from tests.archrepair_core.repairers.arenas import arena_of, soon


def block_of(entered, left, name="0"):
    return Block(name, "Conv2d", entered, left, 10, 10, 0.5, 0, "block", arguments=("input",))


@pytest.mark.parametrize(
    ("level", "code"), [("network", "spec.level_not_searchable"), ("auto", "model.not_searchable")]
)
def test_the_network_and_a_block_that_nothing_bridges_are_refused(level, code):
    blocks = {"head": block_of((8, 4, 4), (10,), name="head")}
    arena = Arena(nn.Identity(), {}, blocks, Repair(), 0.02, 1.0, 0, lambda _message: None)
    with pytest.raises(ArchRepairError) as error:
        search_cell(arena, ["head"], level=level, deadline=0.0, epochs=1)
    assert error.value.code == code


def give_shares_(mixed, **shares):
    """The rest is shared alike."""
    rest = (1 - sum(shares.values())) / (len(mixed.names) - len(shares))
    with torch.no_grad():
        mixed.alphas.copy_(torch.tensor([shares.get(name, rest) for name in mixed.names]).log())


@pytest.mark.parametrize("ends", [("input", "1"), ("input", "output")])
def test_the_derived_cell_has_the_weights_of_the_supernet(ends):
    """What is new has half of the original's share, and counts half as much beside it."""
    torch.manual_seed(0)
    model, block, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), block_of((3, 8, 8), (4, 4, 4)), torch.randn(2, 3, 8, 8)
    searched = nn.Sequential(relax(model[0], block, seed=1))
    supernet = searched.get_submodule("0.branch")
    edges = [Edge(*ends, "sep_conv_3x3")] + ([Edge("1", "output", "skip_connect")] if ends[1] == "1" else [])
    give_shares_(supernet.mixed("input", "output"), original=0.5, sep_conv_3x3=0.25)
    give_shares_(supernet.mixed("1", "output"), skip_connect=0.25)
    genotype = Genotype(("0",), (Edit("0", (Edge("input", "output", "original"), *edges)),))
    built = build_(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), genotype, {"0": block}, seed=7)
    missing = built.load_state_dict(carried_weights(searched.eval(), genotype, block), strict=True)
    assert not missing.missing_keys
    expected = model(x) + 0.5 * supernet.mixed(*ends).operations["sep_conv_3x3"].eval()(x)
    assert torch.allclose(built.eval()(x), expected, atol=1e-6)


def test_a_cell_beyond_the_limits_loses_its_weakest_operations_first(monkeypatch):
    """Each separable convolution here has 4·9·2 + 4·4·2 + 16 = 120 parameters, the scale 4, the original 148."""
    model, block = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1)), block_of((4, 8, 8), (4, 8, 8))
    monkeypatch.setattr("archrepair_core.search.search.latency_ratio", lambda *_models: 1.0)
    monkeypatch.setattr(Arena, "sample", lambda _arena: torch.randn(2, 4, 8, 8))
    strengths = {
        Edge("input", "output", "original"): 0.1,
        Edge("input", "1", "sep_conv_3x3"): 3.0,
        Edge("1", "output", "sep_conv_3x3"): 2.0,
        Edge("input", "2", "sep_conv_3x3"): 4.0,
        Edge("2", "output", "sep_conv_3x3"): 4.0,
    }

    def kept(ratio):
        limits = Repair(max_params_ratio=ratio, max_macs_ratio=10)
        arena = Arena(model, {}, {"0": block}, limits, 0.02, 1.0, 0, lambda _message: None)
        genotype = within_limits(arena, block, strengths)
        return {(edge.source, edge.target) for edit in genotype.edits for edge in edit.new_edges}

    assert len(kept(1 + 484 / 148)) == 4
    assert kept(1 + 483 / 148) == {("input", "2"), ("2", "output")}
    assert kept(1 + 243 / 148) == set()


def test_of_the_first_suspect_the_most_blamed_layer_is_searched_alone(tmp_path, monkeypatch):
    """The head is blamed more, and no part of the suspect."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))
    net = nn.Sequential(body, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 4)).eval()
    limits = {"max_latency_ratio": 10, "max_params_ratio": 10, "max_macs_ratio": 10}
    arena = replace(arena_of(net, tmp_path, limits=limits), blocks={"0": block_of((1, 8, 8), (4, 8, 8))})
    monkeypatch.setattr(archrepair, "layers_by_blame", lambda _arena: ["4", "0.2", "0.0"])
    layer = layer_of(arena, ["0"])
    assert (layer.name, layer.input_shape, layer.output_shape) == ("0.2", (4, 8, 8), (4, 8, 8))
    (trial,) = search_cell(arena, ["0"], level="layer", deadline=soon(), epochs=1)
    assert trial.genotype.scope == ("0.2",)
    state = trial.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items() if "0.2." not in name)
    with pytest.raises(ArchRepairError, match="a layer of the suspects 1"):
        layer_of(arena, ["1"])

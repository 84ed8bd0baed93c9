"""Cells as data: what is a graph from input to output, in which order it is computed, and what is refused."""

import pytest
import torch
from torch import nn

from archrepair_core.errors import EngineError
from archrepair_core.search.dag import Edge, make_dag
from archrepair_core.search.genotype import Edit, Genotype, branch_beside

ORIGINAL = Edge("input", "output", "original")


def test_edges_come_in_the_order_they_are_computed_and_the_original_first():
    edges = [("2", "output", "b"), ("input", "2", "a"), ("1", "2", "c"), ("input", "1", "d")]
    edit = Edit("layer1", (*(Edge(*edge) for edge in edges), ORIGINAL))
    assert [edge.operation for edge in edit.edges] == ["original", "d", "a", "c", "b"]
    assert edit.keeps_original
    assert edit.name == "cell of 4 operations"


def test_a_cell_without_the_original_says_so_in_its_name():
    assert Edit("layer1", (Edge("input", "output", "sep_conv_3x3"),)).name == "sep_conv_3x3 in its place"
    assert branch_beside("layer1", "bottleneck").name == "bottleneck"


def test_a_cell_is_the_same_after_a_way_through_json():
    edit = Edit("layer1", (Edge("input", "1", "a"), Edge("1", "output", "b"), ORIGINAL))
    genotype = Genotype(("",), (edit,), "re-estimated")
    assert Genotype.from_json(genotype.to_json()) == genotype


@pytest.mark.parametrize(
    ("edges", "reason"),
    [
        ([], "one operation"),
        ([ORIGINAL], "one operation"),
        ([Edge("input", "output", "a"), Edge("input", "output", "b")], "one operation"),
        ([Edge("input", "1", "original"), Edge("1", "output", "a")], "one operation"),
        ([Edge("input", "1", "a")], "'1', 'output'"),
        ([Edge("input", "output", "a"), Edge("input", "1", "a")], "'1'"),
        ([Edge("1", "output", "a")], "'1', 'input'"),
        ([Edge("2", "1", "a"), Edge("1", "output", "a")], "not later"),
        ([Edge("input", "x = 1", "a"), Edge("x = 1", "output", "a")], "no node"),
    ],
)
def test_what_is_no_graph_from_input_to_output_is_refused(edges, reason):
    with pytest.raises(EngineError, match=reason):
        Edit("layer1", tuple(edges))


def test_a_graph_sums_into_its_nodes():
    edges = [Edge("input", "1", "a"), Edge("input", "2", "b"), Edge("1", "2", "c"), Edge("2", "output", "d")]
    factors = {"edge_input_1": 2.0, "edge_input_2": 3.0, "edge_1_2": 5.0, "edge_2_output": 7.0}
    operations = {}
    for name, factor in factors.items():
        operations[name] = nn.Linear(1, 1, bias=False)
        nn.init.constant_(operations[name].weight, factor)
    dag = make_dag(edges, operations)
    expected = 7 * (3 + 5 * 2)
    assert dag(torch.ones(1, 1)).item() == expected
    assert torch.jit.script(dag)(torch.ones(1, 1)).item() == expected

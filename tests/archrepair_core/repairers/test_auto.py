"""The ladder's order: what the fault looks like decides what is tried first, and every scope is tried once."""

from types import SimpleNamespace

import pytest
import torch

from archrepair_core.blocks import Block
from archrepair_core.repairers.auto import ALIGN_WEIGHT, MANY_FAILURES, SCOPES_BY_FAULT, _starts, candidates
from archrepair_core.scope import NETWORK
from archrepair_core.search.genotype import Genotype
from archrepair_core.search.trials import Trial
from archrepair_core.selection import ValidationScore


def block_of(name, depth):
    level = "stage" if "." not in name else "block"
    return Block(name, "Residual", (8, 6, 6), (8, 6, 6), 10, 10, 0.1, depth, level)


NAMES = ["layer1", "layer1.0", "layer1.1", "layer2", "layer2.0", "layer2.1", "layer3", "layer3.0", "layer3.1"]
BLOCKS = {name: block_of(name, depth) for depth, name in enumerate(NAMES)}


def arena(fault, starts=("original",), tells_healthy=False, restoration=None, num_failures=0, bold=False):
    return SimpleNamespace(
        bold=bold,
        shows_only_failures=num_failures > 0,
        num_repair=num_failures,
        blocks=BLOCKS,
        fault=fault,
        starts=dict.fromkeys(starts),
        tells_healthy=tells_healthy,
        original=None,
        restoration=restoration,
    )


def scopes_of(genotypes):
    return list(dict.fromkeys(genotype.scope for genotype in genotypes if not genotype.edits))


@pytest.mark.parametrize(
    ("fault", "first", "second"),
    [
        ("damaged_weights", ("layer2.1",), ("layer1.0",)),
        ("input_shift", NETWORK, ("layer1", "layer2")),
        ("overfitting", NETWORK, ("layer2", "layer3")),
        ("label_or_class", NETWORK, ("layer2", "layer3")),
        ("unknown", NETWORK, ("layer2",)),
    ],
)
def test_the_kind_of_fault_orders_the_scopes(fault, first, second):
    found = scopes_of(candidates(arena(fault), ["layer2.1", "layer1.0"], level="auto"))
    assert found[:2] == [first, second]
    assert len(found) == len(set(found))
    assert set(SCOPES_BY_FAULT) >= {fault}


def test_where_known_images_are_restored_the_network_has_all_the_time():
    found = arena("input_shift", ("re-estimated", "original"), restoration="what it was")
    assert [genotype.name for genotype in candidates(found, ["layer1.0"], level="auto")] == [
        "network, re-estimated statistics"
    ]


def test_of_many_failures_and_nothing_else_one_block_has_all_the_time_to_learn():
    many, few = (
        candidates(arena("input_shift", num_failures=number), ["layer2.1", "layer1.0"], level="auto")
        for number in (MANY_FAILURES, MANY_FAILURES - 1)
    )
    assert many == [Genotype(("layer2.1",))]
    assert few == candidates(arena("input_shift"), ["layer2.1", "layer1.0"], level="auto")


def test_where_little_works_the_network_has_all_the_time():
    bold = arena("unknown", ("original", "re-estimated"), bold=True)
    assert candidates(bold, ["layer2.1", "layer1.0"], level="auto") == [Genotype(NETWORK)]


def test_new_branches_come_after_every_scope_as_it_is():
    genotypes = candidates(arena("unknown"), ["layer2.1"], level="auto")
    kept = [not genotype.edits for genotype in genotypes]
    assert kept == sorted(kept, reverse=True)
    assert any(genotype.edits for genotype in genotypes)


def test_a_block_is_removed_or_replaced_only_after_everything_that_keeps_it():
    genotypes = candidates(arena("unknown"), ["layer2.1"], level="auto")
    keeps = [all(edit.keeps_original for edit in genotype.edits) for genotype in genotypes]
    assert keeps == sorted(keeps, reverse=True)
    assert [genotype.name for genotype, kept in zip(genotypes, keeps, strict=True) if not kept] == [
        "layer2.1 + skip_connect in its place",
        "layer2.1 + sep_conv_3x3 in its place",
    ]


@pytest.mark.parametrize(
    ("fault", "known", "starts"),
    [
        ("unknown", ("re-estimated", "original"), ["re-estimated"]),
        ("unknown", ("original", "re-estimated"), ["original"]),
        ("damaged_weights", ("original", "re-estimated"), ["original", "re-estimated"]),
    ],
)
def test_where_the_first_guess_starts(fault, known, starts):
    """The network is walked back to the original from any start that clearly helped, a block only to its own start."""
    genotypes = candidates(arena(fault, known), ["layer2.1"], level="auto")
    assert [
        genotype.start for genotype in genotypes if genotype.scope == genotypes[0].scope and not genotype.edits
    ] == starts


def test_the_first_guess_is_tried_with_the_healthy_statistics_too():
    genotypes = candidates(arena("unknown", tells_healthy=True), ["layer2.1"], level="auto")
    assert [genotype.scope for genotype in genotypes if genotype.align == ALIGN_WEIGHT] == [NETWORK]


@pytest.mark.parametrize(("level", "scopes"), [("network", [NETWORK]), ("block", [("layer2.1",), ("layer1.0",)])])
def test_a_level_keeps_the_race_on_it(level, scopes):
    assert scopes_of(candidates(arena("overfitting"), ["layer2.1", "layer1.0"], level=level)) == scopes


@pytest.mark.parametrize(
    ("accuracy", "gain", "order"),
    [
        (0.5, 0.3, ["re-estimated", "original"]),
        (0.5, 0.0, ["original", "re-estimated"]),
        (0.3, 0.3, ["original", "re-estimated"]),  # everything failed before: what it breaks cannot be seen
    ],
)
def test_a_start_stands_before_the_original_only_where_it_clearly_helps(accuracy, gain, order):
    change_N = torch.full((50,), gain) + torch.linspace(-0.5, 0.5, 50)
    score = ValidationScore(accuracy, gain, 0.0, change_N, 0.0)
    trial = Trial(Genotype(("bn1",), start="re-estimated"), None, 1.0, score, None)
    original = SimpleNamespace(starting_from=lambda _model: "another cache")
    assert list(_starts(SimpleNamespace(starts={"original": original}), [trial])) == order

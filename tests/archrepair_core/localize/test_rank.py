"""Ranking on observations whose guilty block is known."""

import numpy as np
import pytest

from archrepair_core.blocks import Block
from archrepair_core.localize.observe import LayerObservation
from archrepair_core.localize.rank import METHODS, Pools, rank_at_random, rank_blocks

LAYERS = {"stem": 8, "a.conv1": 16, "a.conv2": 16, "b.conv1": 64, "b.conv2": 64, "head": 10}
BLOCKS = [
    Block(name, "Residual", (1, 2, 2), (1, 2, 2), 10, 10, 0.5, depth, "block") for depth, name in enumerate(("a", "b"))
]


def observe(rng, count, *, guilty=None, lift=0.0):
    """Noise in every channel; the first channels of the guilty layer stand out by `lift`."""
    layers = []
    for name, channels in LAYERS.items():
        activation = rng.normal(size=(count, channels)).astype(np.float32)
        influence = rng.random((count, channels)).astype(np.float32)
        if name == guilty:
            activation[:, :12] += lift
            influence[:, :12] += lift
        layers.append(LayerObservation(name, activation, influence))
    return layers


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("guilty", ["a.conv2", "b.conv1"])
def test_the_block_whose_channels_go_with_failing_comes_first(method, guilty):
    rng = np.random.default_rng(1)
    pools = Pools(observe(rng, 200), observe(rng, 60, guilty=guilty, lift=3.0))
    ranking = rank_blocks(pools, BLOCKS, method=method, formula="ochiai", seed=0)
    assert ranking.blocks[0].name == guilty.split(".")[0]
    assert ranking.layers[0].name == guilty
    assert ranking.blocks[0].top_share >= 0.9
    assert ranking.stability >= 0.6


def test_size_does_not_win_without_a_fault():
    rng = np.random.default_rng(2)
    first = [
        rank_blocks(Pools(observe(rng, 100), observe(rng, 100)), BLOCKS, method="spectrum", formula="ochiai", seed=0)
        .blocks[0]
        .name
        for _ in range(20)
    ]
    assert 3 <= first.count("b") <= 17


def test_an_unstable_ranking_says_so():
    rng = np.random.default_rng(3)
    pools = Pools(observe(rng, 40), observe(rng, 10))
    ranking = rank_blocks(pools, BLOCKS, method="spectrum+gradient", formula="tarantula", seed=0)
    assert ranking.stability < 0.9
    assert ranking.blocks[0].score_sd > 0


def test_the_same_seed_gives_the_same_ranking():
    def ranking():
        rng = np.random.default_rng(4)
        pools = Pools(observe(rng, 40), observe(rng, 10))
        return rank_blocks(pools, BLOCKS, method="gradient", formula="ochiai", seed=5)

    assert ranking() == ranking()


def test_the_random_control_depends_on_the_seed_only():
    assert rank_at_random(BLOCKS, seed=1) == rank_at_random(BLOCKS, seed=1)
    orders = {tuple(row.name for row in rank_at_random(BLOCKS, seed=seed).blocks) for seed in range(10)}
    assert len(orders) == 2

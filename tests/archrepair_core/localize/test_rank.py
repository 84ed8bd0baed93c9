"""Ranking on observations whose guilty block is known."""

import numpy as np
import pytest

from archrepair_core.blocks import Block
from archrepair_core.localize.observe import Observations
from archrepair_core.localize.rank import METHODS, rank_at_random, rank_blocks

LAYERS = {"stem": 8, "a.conv1": 16, "a.conv2": 16, "b.conv1": 64, "b.conv2": 64, "head": 10}
BLOCKS = [
    Block(name, "Residual", (1, 2, 2), (1, 2, 2), 10, 10, 0.5, depth, "block") for depth, name in enumerate(("a", "b"))
]


def observe(rng, passing, failing, *, guilty=None, lift=0.0):
    """Noise in every channel; on failing inputs the first channels of the guilty layer stand out by `lift`."""
    stops = np.cumsum(list(LAYERS.values()))
    layers = {name: slice(int(stop - LAYERS[name]), int(stop)) for name, stop in zip(LAYERS, stops, strict=True)}
    count = passing + failing
    activation = rng.normal(size=(count, stops[-1])).astype(np.float32)
    influence = rng.random((count, stops[-1])).astype(np.float32)
    if guilty:
        first = layers[guilty].start
        activation[passing:, first : first + 12] += lift
        influence[passing:, first : first + 12] += lift
    return Observations(layers, activation, influence, np.arange(count) < passing, np.arange(count), count, count)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("guilty", ["a.conv2", "b.conv1"])
def test_the_block_whose_channels_go_with_failing_comes_first(method, guilty):
    rng = np.random.default_rng(1)
    seen = observe(rng, 200, 60, guilty=guilty, lift=3.0)
    ranking = rank_blocks(seen, BLOCKS, method=method, formula="ochiai", seed=0)
    assert ranking.blocks[0].name == guilty.split(".")[0]
    assert ranking.layers[0].name == guilty
    assert ranking.blocks[0].top_share >= 0.9
    assert ranking.stability >= 0.6


def test_size_does_not_win_without_a_fault():
    rng = np.random.default_rng(2)
    first = [
        rank_blocks(observe(rng, 100, 100), BLOCKS, method="spectrum", formula="ochiai", seed=0).blocks[0].name
        for _ in range(20)
    ]
    assert 3 <= first.count("b") <= 17


def test_an_unstable_ranking_says_so():
    rng = np.random.default_rng(3)
    ranking = rank_blocks(observe(rng, 40, 10), BLOCKS, method="spectrum+gradient", formula="tarantula", seed=0)
    assert ranking.stability < 0.9
    assert ranking.blocks[0].score_sd > 0


def test_the_same_seed_gives_the_same_ranking():
    def ranking():
        rng = np.random.default_rng(4)
        return rank_blocks(observe(rng, 40, 10), BLOCKS, method="gradient", formula="ochiai", seed=5)

    assert ranking() == ranking()


def test_the_random_control_depends_on_the_seed_only():
    assert rank_at_random(BLOCKS, seed=1) == rank_at_random(BLOCKS, seed=1)
    orders = {tuple(row.name for row in rank_at_random(BLOCKS, seed=seed).blocks) for seed in range(10)}
    assert len(orders) == 2

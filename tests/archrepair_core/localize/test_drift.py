"""Drift names the block that was damaged, and no block when only the inputs changed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.blocks import find_blocks
from archrepair_core.demo.digits import DigitsNet
from archrepair_core.fingerprint import measure_fingerprint, recorded_fingerprint
from archrepair_core.localize.diagnosis import standing_apart, standing_out
from archrepair_core.localize.drift import compare_with_reference, measure_drift, onset_of
from archrepair_core.localize.rank import resample_weights


def images(count, *, seed):
    smooth = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(smooth, size=(8, 8), mode="bilinear")


@pytest.fixture(scope="module")
def healthy():
    """A network whose batch-norms have seen its inputs."""
    torch.manual_seed(0)
    net = DigitsNet().train()
    with torch.no_grad():
        for seed in range(40):
            net(images(128, seed=seed))
    return net.eval()


@pytest.fixture(scope="module")
def blocks(healthy):
    return [block for block in find_blocks(healthy, images(2, seed=0)) if block.level == "block"]


def blame(net, inputs, blocks):
    weights = resample_weights(np.ones(len(inputs), dtype=bool), seed=0)
    drift = measure_drift(net, inputs.split(20), recorded_fingerprint(net), blocks=blocks, weights_BI=weights)
    return standing_out(drift, [block.name for block in blocks], among=range(len(blocks)))


def damaged(net, block):
    spoilt = copy.deepcopy(net)
    weight = spoilt.get_submodule(block).conv1.weight
    with torch.no_grad():
        weight[::2] = 0.0
    return spoilt


@pytest.mark.parametrize("name", ["blocks.0", "blocks.1", "blocks.2"])
def test_thirty_unlabelled_inputs_name_the_damaged_block(healthy, blocks, name):
    found, evidence = blame(damaged(healthy, name), images(30, seed=99), blocks)
    assert (found, evidence["drift_block"]) == (name, name)
    assert evidence["drift_jump"] > 4 * evidence["drift_before"]


def test_a_healthy_network_blames_nothing_even_on_other_inputs(healthy, blocks):
    assert blame(healthy, images(30, seed=99), blocks)[0] is None
    found, evidence = blame(healthy, 0.3 * images(30, seed=99), blocks)
    assert found is None
    assert evidence["drift_first_layer"] > 0.25, "that shows from the first layer on"


def test_resampled_divergence_is_that_of_the_resampled_inputs(healthy, blocks):
    inputs = images(6, seed=5)
    weights = np.array([[1] * 6, [3, 0, 0, 2, 1, 0]], dtype=np.float32)
    reference = measure_fingerprint(healthy, [images(50, seed=6)], ["stem.1", "blocks.0.bn2"])
    drift = measure_drift(healthy, [inputs], reference, blocks=blocks, weights_BI=weights)
    again = measure_drift(
        healthy, [inputs[[0, 0, 0, 3, 3, 4]]], reference, blocks=blocks, weights_BI=np.ones((1, 6), dtype=np.float32)
    )
    assert drift.layers == ("stem.1", "blocks.0.bn2")
    np.testing.assert_allclose(drift.divergence_BL[1], again.divergence_BL[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["blocks.0", "blocks.2"])
def test_against_a_reference_only_the_block_whose_own_map_changed_counts(healthy, blocks, name):
    inputs = images(30, seed=98)
    weights = resample_weights(np.ones(30, dtype=bool), seed=0)
    scores = compare_with_reference(
        damaged(healthy, name), healthy, inputs.split(20), blocks=blocks, weights_BI=weights
    )
    names = [block.name for block in blocks]
    assert {other for other, score in zip(names, scores[0], strict=True) if score > 0} == {name}
    assert standing_apart(scores, names)[0] == name
    same = compare_with_reference(copy.deepcopy(healthy), healthy, inputs.split(20), blocks=blocks, weights_BI=weights)
    assert standing_apart(same, names)[0] is None


def test_a_divergence_begins_where_it_grows_most_by_factor_not_where_it_is_largest():
    onset_BL = onset_of(np.array([[0.01, 0.5, 5.0, 4.0], [0.001, 0.002, 0.001, 0.002]]))
    assert onset_BL[0].argmax() == 1
    assert onset_BL[0, 3] < 0, "less than a layer before it"
    assert np.abs(onset_BL[1]).max() < 0.2, "what is below the noise is no beginning"

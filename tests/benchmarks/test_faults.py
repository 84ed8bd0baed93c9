"""Planted faults do what their names say, and the draw behind published numbers stays what it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.faults import FLIPPED, KINDS, LARGEST_FLIPPED, STEPS, Confusion, Fault, confuse, damage_, draw_faults


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_changes_one_block_alike_every_time_and_leaves_numbers(kind):
    network = make_network()
    first, again, other = (damage_(copy.deepcopy(network), "0", kind, seed) for seed in (1, 1, 2))
    assert (first[0].weight != network[0].weight).any()
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert torch.isfinite(first[0].weight).all()
    assert torch.equal(first[0].bias, network[0].bias)
    assert torch.equal(first[2].weight, network[2].weight)


def test_flipped_weights_differ_in_one_bit_each_and_keep_a_size_a_weight_could_have():
    before = make_network()[2].weight.detach()
    after = damage_(make_network(), "2", "bit_flips", seed=0)[2].weight.detach()
    differing = (before.view(torch.int32) ^ after.view(torch.int32)).numpy().view(np.uint32)
    counts = np.array([int(bits).bit_count() for bits in differing.ravel()])
    assert counts.max() == 1
    assert FLIPPED[0] * 0.9 < counts.mean() < FLIPPED[1]
    bits = {int(value).bit_length() - 1 for value in differing.ravel() if value}
    assert {0, 24, 31} <= bits  # mantissa, exponent and sign
    assert after.abs().max() <= LARGEST_FLIPPED


def test_quantised_weights_keep_a_few_values_of_which_the_tails_are_cut():
    before = make_network()[2].weight.detach()
    for seed in range(8):
        after = damage_(make_network(), "2", "quantised", seed)[2].weight.detach()
        assert len(after.unique()) in [2 * steps + 1 for steps in STEPS]
        assert after.abs().max() < before.abs().max()


def test_the_drawn_faults_are_those_of_the_published_localization_results():
    drawn = draw_faults(["a", "b", "c"], 4, seed=5)
    assert [fault.kind for fault in drawn] == ["noise", "zeroed", "swapped", "noise"]
    assert drawn[1] == Fault("zeroed", drawn[1].block, 50_001)


def test_a_block_without_filters_cannot_be_damaged():
    with pytest.raises(ValueError, match="no weight"):
        damage_(make_network(), "1", "noise", 0)


def test_a_share_of_one_class_is_confused_and_the_labels_given_stay_true():
    labels = np.arange(1000) % 10
    told = confuse(labels, Confusion(6, taken_for=0, share=0.6))
    assert (told == 0).sum() == 160
    assert (told == 6).sum() == 40
    assert (labels[told != labels] == 6).all()
    assert (labels == np.arange(1000) % 10).all()
    assert (told == confuse(labels, Confusion(6, taken_for=0, share=0.6))).all()

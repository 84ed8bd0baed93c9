"""Mixtures lie between a known image, chains of it and a failing image, and their answers are pulled together."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from archrepair_core.batches import Batch
from archrepair_core.errors import ArchRepairError
from archrepair_core.repairers.fewshot_mix import (
    changed_by_chain,
    inconsistency,
    jensen_shannon,
    mixed,
    mixer_of,
    train_on_mixtures,
)
from tests.archrepair_core.repairers.arenas import (
    DAMAGED_NEURON,
    accuracy,
    arena_of,
    as_split,
    damaged_net,
    quadrants,
    soon,
)


def test_a_mixture_is_a_weighted_mean():
    images = np.stack([np.full((2, 2, 1), value, np.uint8) for value in (100, 30)])
    chains = [np.full((2, 2, 2, 1), value) for value in (0.0, 40.0, 220.0)]
    found = mixed(images, chains, np.random.default_rng(3), white=255.0)
    rng = np.random.default_rng(3)
    weights, shares = rng.dirichlet(np.ones(3), 2), rng.beta(1, 1, (2, 1, 1, 1)).ravel()
    assert found.dtype == np.uint8
    for row, value in enumerate((100, 30)):
        expected = shares[row] * value + (1 - shares[row]) * float(weights[row] @ [0, 40, 220])
        assert (found[row] == round(expected)).all()


def test_the_guide_is_a_failing_image_of_the_same_class_where_there_is_one(tmp_path, monkeypatch):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 40, seed=3))
    mixer = mixer_of(arena.starts["original"])
    assert set(mixer.failing.labels) == {DAMAGED_NEURON}
    guides = []
    monkeypatch.setattr(
        "archrepair_core.repairers.fewshot_mix.mixed",
        lambda images, chains, rng, white: guides.extend(chains[-1]) or images,
    )
    plain, *mixtures = mixer.inputs(np.arange(4), np.random.default_rng(0))
    assert len(guides) == 8
    assert all(any(np.array_equal(guide, image) for image in mixer.failing.images[:]) for guide in guides)
    assert len(mixtures) == 2
    assert torch.equal(mixtures[0], plain)


def test_a_chain_changes_images_and_keeps_their_scale():
    images = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)
    found = [changed_by_chain(images, np.random.default_rng(seed), white=1.0) for seed in range(6)]
    assert all(each.shape == images.shape and each.min() >= 0 and each.max() <= 1 for each in found)
    assert sum(not np.allclose(each, images, atol=1 / 255) for each in found) >= 3


def test_the_divergence_is_zero_for_agreement_and_grows_to_the_log():
    same = torch.tensor([[0.7, 0.3]]).expand(3, 1, 2)
    assert float(jensen_shannon(same)) == pytest.approx(0.0, abs=1e-6)
    apart = torch.eye(3)[:, None]
    assert float(jensen_shannon(apart)) == pytest.approx(float(torch.log(torch.tensor(3.0))), abs=1e-4)
    by_hand = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]])
    mean = by_hand.mean(0)
    expected = sum(F.kl_div(mean.log(), each, reduction="sum") for each in by_hand) / 2
    assert float(jensen_shannon(by_hand)) == pytest.approx(float(expected), abs=1e-6)


def test_only_known_images_are_mixed_and_the_chance_is_torchs(tmp_path):
    net = damaged_net()
    arena = arena_of(net, tmp_path, replay=quadrants("replay", 40, seed=3))
    mixer = mixer_of(arena.starts["original"])

    def batch_of(items):
        zeros = torch.zeros(len(items), 4)
        return Batch(torch.zeros(len(items), 1, 8, 8), zeros[:, 0].long(), zeros, 1.0, np.array(items))

    assert float(inconsistency(net, mixer, batch_of([0, 59]))) == 0.0
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(inconsistency(net, mixer, batch_of([5, 60, 99])).item())
    assert values[0] == values[1] != values[2]
    assert values[0] > 0


def test_the_damaged_network_is_trained_on_mixtures(tmp_path):
    net = damaged_net()
    arena = arena_of(net, tmp_path, limits={"distillation": 0}, replay=quadrants("replay", 40, seed=3))
    (trial,) = train_on_mixtures(arena, [], level="auto", deadline=soon(), epochs=40)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trial.model, test) > accuracy(net, test) + 0.1


def test_images_that_operations_are_not_defined_on_are_refused(tmp_path):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 8, seed=3))
    cache = arena.starts["original"]
    cache.splits["replay"] = as_split("replay", np.zeros((8, 8, 8, 2), np.uint8), np.zeros(8, int))
    with pytest.raises(ArchRepairError) as error:
        mixer_of(cache)
    assert error.value.code == "dataset.channels_not_augmentable"

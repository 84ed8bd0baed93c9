"""Restoration: the last layer is to be given for changed images what the original gives it for the untouched ones."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.batches import read_batch
from archrepair_core.data.augment import IDENTITY, View
from archrepair_core.data.corruptions import Corruption
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.features import DiskBudget, StoredRows, StreamedRows
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.restoration import (
    BOLD_RESTORATION,
    RESTORATION,
    last_layer,
    measure_restoration,
    pooled,
    restoration_weight,
)
from archrepair_core.scope import NETWORK
from archrepair_core.spec import Preprocessing, Repair
from archrepair_core.training import TrainingPlan, train

NUM_REPAIR, NUM_REPLAY, NUM_CLASSES = 6, 40, 3
DARK = Corruption("exposure", 0.3, 255.0)


def images(role: str, count: int, *, seed: int) -> LabelledImages:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    rows = ImageRows(pixels, np.arange(count))
    return LabelledImages(role, rows, rng.integers(0, NUM_CLASSES, count), "", np.empty(count, "S16"), "random")


def make_net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, NUM_CLASSES)).eval()


@pytest.fixture
def cache(tmp_path: Path) -> PrefixCache:
    net = make_net()
    splits = {"repair": images("repair", NUM_REPAIR, seed=1), "replay": images("replay", NUM_REPLAY, seed=2)}
    with torch.no_grad():
        logits = {name: net(to_tensor(s.images[: len(s)], Preprocessing())) for name, s in splits.items()}
    views = {"replay": (View(change=DARK), IDENTITY)}
    return PrefixCache(net, splits, logits, Preprocessing(), views, tmp_path, torch.device("cpu"), DiskBudget(1e6))


def features_of(net: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return net[:-1](inputs)


def untouched(cache: PrefixCache) -> torch.Tensor:
    return to_tensor(cache.splits["replay"].images[:NUM_REPLAY], Preprocessing())


def test_only_replayed_images_count_by_the_squared_distance_in_units_of_the_variance(cache):
    restoration = measure_restoration(cache, weight=2.0)
    features, net = cache.features(INPUT, "training"), copy.deepcopy(cache.model)
    with torch.no_grad():
        net[0].weight.mul_(1.3)
    items = np.array([2, NUM_REPAIR + 3, NUM_REPAIR + 11])  # one of the repair set, two of the replay set
    batch = read_batch(features, np.zeros(3, int), items, torch.device("cpu"))
    with torch.no_grad(), restoration.penalty(net) as penalty:
        net(batch.inputs)
        found = penalty(batch)
        wanted = features_of(cache.model, untouched(cache))
        given = features_of(net, batch.inputs)
    distance = (given[1:] - wanted[[3, 11]]).square() / wanted.var(0, unbiased=False)
    assert float(found) == pytest.approx(2.0 * float(distance.mean(1).sum()) / 3, rel=1e-2)


def test_a_batch_without_replayed_images_costs_nothing(cache):
    restoration = measure_restoration(cache, weight=2.0)
    batch = read_batch(cache.features(INPUT, "training"), np.zeros(2, int), np.arange(2), torch.device("cpu"))
    with restoration.penalty(cache.model) as penalty:
        cache.model(batch.inputs)
        assert float(penalty(batch)) == 0.0


def test_the_original_on_untouched_images_costs_nothing(cache):
    restoration = measure_restoration(cache, weight=4.0)
    items = np.arange(NUM_REPAIR, NUM_REPAIR + NUM_REPLAY)
    batch = read_batch(cache.features(INPUT, "training"), np.ones_like(items), items, torch.device("cpu"))
    with torch.no_grad(), restoration.penalty(cache.model) as penalty:
        cache.model(batch.inputs)
        assert float(penalty(batch)) == pytest.approx(0, abs=1e-3)


def test_training_with_it_brings_the_features_of_changed_images_nearer_to_those_of_the_untouched(cache):
    features, restoration = cache.features(INPUT, "training"), measure_restoration(cache, weight=4.0)
    plan = TrainingPlan(epochs=30, deadline=float("inf"), seed=0)
    dark = to_tensor(DARK(cache.splits["replay"].images[:NUM_REPLAY], range(NUM_REPLAY)), Preprocessing())

    def distance_left(restored: bool) -> float:
        net = copy.deepcopy(cache.model)
        with restoration.penalty(net) as penalty:
            asked = dataclasses.replace(plan, penalty=penalty if restored else None)
            train(net, net, features, scope=NETWORK, plan=asked)
        with torch.no_grad():
            wanted = features_of(cache.model, untouched(cache))
            return float(((features_of(net, dark) - wanted).square() / wanted.var(0)).mean())

    assert distance_left(True) < 0.8 * distance_left(False)


def test_what_does_not_fit_on_disk_is_computed_each_time(cache):
    streaming = dataclasses.replace(cache, budget=DiskBudget(0))
    stored, streamed = (measure_restoration(each, weight=1.0).wanted for each in (cache, streaming))
    assert (type(stored), type(streamed)) == (StoredRows, StreamedRows)
    asked = np.zeros(3, int), np.array([5, 0, 17])
    torch.testing.assert_close(stored.read(*asked), streamed.read(*asked))


def test_the_last_layer_is_the_last_that_ran_and_only_when_it_ran_once():
    net, inputs = make_net(), torch.rand(2, 3, 8, 8)
    assert last_layer(net, inputs) == "5"
    twice = nn.Sequential(net[0], nn.Flatten(), nn.Linear(512, 512))
    twice.append(twice[2])
    assert last_layer(twice, inputs) is None
    assert last_layer(nn.Flatten(), inputs) is None


def test_maps_and_tokens_are_averaged_over_their_places():
    values = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(pooled(values), values.mean((2, 3)))
    torch.testing.assert_close(pooled(values[..., 0]), values[..., 0].mean(1))
    assert pooled(values[:, :, 0, 0]).shape == (2, 3)


def test_the_weight_is_the_one_asked_for():
    assert restoration_weight(Repair(), bold=False) == RESTORATION
    assert restoration_weight(Repair(), bold=True) == BOLD_RESTORATION
    assert {restoration_weight(Repair(restoration=0), bold=bold) for bold in (False, True)} == {0}

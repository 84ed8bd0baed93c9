"""What is drawn for a case, on toy data: nothing is fetched or trained."""

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.demo.digits import DigitsNet
from benchmarks import cases, fashion
from benchmarks.cases import CASES
from benchmarks.digits import NUM_LEARNED, digits_sets

NUM_TRAIN, NUM_TEST = 60_000, 10_000


class AnswersParity(nn.Module):
    """Right about every even number in the upper left corner: class 1 for odd ones, whatever their label."""

    def forward(self, x):
        odd = (x[:, 0, 0, 0] * 255).round() % 2
        return torch.stack([1 - odd, odd], 1)


@pytest.fixture
def numbered_fashion(monkeypatch):
    """Pictures of two pixels that carry their row in the first, and only images of class 0."""

    def load(split):
        count = {"train": NUM_TRAIN, "test": NUM_TEST}[split]
        rows = np.arange(count)
        images = np.stack([rows % 256, rows // 256], 1).astype(np.uint8)[:, None, :]
        return images, np.zeros(count, dtype=np.int64)

    monkeypatch.setattr(fashion, "load_fashion", load)
    monkeypatch.setattr(fashion, "turned", lambda images, degrees: images)
    monkeypatch.setattr(fashion, "PREPROCESSING", {})
    monkeypatch.setattr(cases, "load_network", lambda name: AnswersParity())


def rows_of(images):
    return images[:, 0, 0] + 256 * images[:, 0, 1].astype(int)


def test_digits_are_disjoint_and_each_seed_draws_anew():
    sets = digits_sets(3)
    assert {role: len(labels) for role, (_, labels) in sets.items()} == {
        "repair": 450,
        "test": 1797 - NUM_LEARNED - 450,
        "replay": NUM_LEARNED,
        "regression": NUM_LEARNED,
    }
    assert (digits_sets(3)["test"][0] == sets["test"][0]).all()
    assert (digits_sets(4)["test"][1] != sets["test"][1]).any()
    assert (digits_sets(4)["replay"][0] == sets["replay"][0]).all()
    assert DigitsNet()(torch.zeros(2, 1, *sets["test"][0].shape[1:])).shape == (2, 10)


def test_fashion_repairs_with_images_no_network_learned_from(numbered_fashion):
    for seed in (0, 1000):
        sets = CASES["fashion"].draw(seed)
        field = rows_of(sets["repair"][0])
        low, high = fashion.DEVELOPMENT_FIELD if seed else fashion.FIELD
        assert low <= field.min()
        assert field.max() < high
        assert len(set(field)) == cases.NUM_REPAIR
        assert rows_of(sets["replay"][0]).max() < fashion.NUM_LEARNED
    published, development = (set(rows_of(CASES["fashion"].draw(seed)["test"][0])) for seed in (0, 1000))
    assert not published & development


@pytest.mark.parametrize("count", [10, 1000])
def test_few_are_so_many_failures_and_nothing_else_of_the_field(numbered_fashion, count):
    sets = CASES[f"few {count}"].draw(0)
    rows = rows_of(sets["repair"][0])
    assert len(set(rows)) == count
    assert (rows % 256 % 2 == 1).all()  # the network fails on these
    assert set(rows_of(CASES["few 10"].draw(0)["repair"][0])) <= set(rows)


def test_confused_labels_are_replayed_as_they_were_learned_and_kept_only_where_the_answer_is_true(
    numbered_fashion, monkeypatch
):
    load = fashion.load_fashion
    monkeypatch.setattr(fashion, "load_fashion", lambda split: (load(split)[0], load(split)[1] + fashion.SHIRT))
    monkeypatch.setattr(cases, "load_network", lambda name: AnswersShirtToEven())
    sets = CASES["fashion confusion"].draw(0)
    assert (sets["repair"][1] == fashion.SHIRT).all()
    assert (sets["test"][1] == fashion.SHIRT).all()
    assert set(sets["replay"][1]) == {fashion.SHIRT, fashion.TSHIRT}
    assert (sets["replay"][1] == fashion.TSHIRT).mean() == pytest.approx(0.6, abs=0.05)
    assert (rows_of(sets["regression"][0]) % 2 == 0).all()
    assert len(sets["regression"][1]) == cases.NUM_REPLAY


class AnswersShirtToEven(nn.Module):
    def forward(self, x):
        odd = (x[:, 0, 0, 0] * 255).round() % 2
        return nn.functional.one_hot(torch.where(odd == 1, fashion.TSHIRT, fashion.SHIRT), 10).float()

"""Corruptions: what is counted, and that batches and chance change nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core import robustness
from archrepair_core.data.images import DIGEST_DTYPE, labelled_images
from archrepair_core.robustness import corruption_error, drawn_rows, measure_robustness, summarize_robustness
from archrepair_core.spec import Preprocessing

PIXELS = np.random.default_rng(1).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)


class Bright(nn.Module):
    """Whether the mean of an image is above a threshold: brightness moves it, contrast hardly does."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        above = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([-above, above], 1)


def measure(**options):
    labels = (PIXELS.mean((1, 2, 3)) / 255 > 0.5).astype(int)
    images = labelled_images(PIXELS, labels, np.zeros(23, DIGEST_DTYPE), name="test", source="test")
    asked = {"kinds": ["brightness", "gaussian_noise", "contrast"], "seed": 3, "device": "cpu"} | options
    found = measure_robustness({"before": Bright(0.52), "after": Bright(0.5)}, images, Preprocessing(), **asked)
    return found | {"seconds": 0}


def test_the_seed_decides_and_the_batches_do_not(monkeypatch):
    whole = measure()
    assert measure() == whole
    monkeypatch.setattr(robustness, "MAX_BATCH", 4)
    assert measure() == whole
    assert measure(seed=4) != whole


def test_progress_reaches_the_end_one_corruption_at_a_time():
    told = []
    measure(on_share=lambda share, kind: told.append((share, kind)))
    assert [kind for _, kind in told] == ["brightness", "gaussian_noise", "contrast"]
    assert told[-1][0] == pytest.approx(1.0)


def test_brightness_makes_everything_bright():
    rows = {row["kind"]: row for row in measure()["kinds"]}
    dark = 1 - (PIXELS.mean((1, 2, 3)) / 255 > 0.5).mean()
    assert rows["brightness"]["after"][4] == pytest.approx(1 - dark), "only what was bright anyway is right"
    assert rows["brightness"]["parameters"] == [0.05, 0.1, 0.15, 0.2, 0.3]


def test_the_mean_corruption_error_by_hand():
    before = np.array([[1, 2], [3, 0], [0, 0]], np.uint8)
    after = np.array([[1, 1], [1, 0], [0, 0]], np.uint8)
    ratios, mce = corruption_error(before, after)
    assert (ratios, mce["value"]) == ([0.5, 0.5], 0.5)
    found = summarize_robustness(before, after)
    assert found["accuracy"]["before"] == pytest.approx(1 - 6 / 30)
    assert found["accuracy"]["after"] == pytest.approx(1 - 3 / 30)
    assert found["kinds"][0]["mean"]["change"] == pytest.approx(2 / 15)
    assert found["worse_p"] > 0.5
    ratios, mce = corruption_error(np.array([[0, 2]], np.uint8), np.array([[1, 1]], np.uint8))
    assert (ratios, mce["value"]) == ([None, 0.5], 0.5), "what the original never misses has no ratio"
    assert corruption_error(np.zeros((2, 1), np.uint8), np.ones((2, 1), np.uint8))[1] == {"value": None, "ci95": None}


def test_the_interval_of_the_mean_corruption_error_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    before, after = rng.binomial(5, 0.4, (400, 3)), rng.binomial(5, 0.3, (400, 3))
    _, mce = corruption_error(before, after)
    draws = rng.integers(0, 400, (2000, 400))
    resampled = (after[draws].sum(1) / before[draws].sum(1)).mean(1)
    assert mce["ci95"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.01)


def test_so_many_inputs_are_drawn_without_looking():
    assert drawn_rows(5, max_inputs=10, seed=0).tolist() == [0, 1, 2, 3, 4]
    rows = drawn_rows(1000, max_inputs=100, seed=1)
    assert (len(set(rows)), rows.tolist()) == (100, sorted(rows))
    assert rows.tolist() != drawn_rows(1000, max_inputs=100, seed=2).tolist()

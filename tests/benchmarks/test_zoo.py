"""Networks are kept, and trained again where their recipe has changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import zoo
from benchmarks.faults import Confusion


@pytest.fixture
def toy_zoo(tmp_path, monkeypatch):
    """One network of a linear layer for grey pictures of which the mean is the class."""

    def load(split):
        labels = np.arange(256) % 2
        noise = np.random.default_rng(0).integers(0, 60, (256, 4, 4))
        return (noise + 180 * labels[:, None, None]).astype(np.uint8), labels

    recipe = zoo.Recipe(256, 8, 0.1, augment=False, data="toy")
    monkeypatch.setattr(zoo, "OUT", tmp_path)
    monkeypatch.setitem(zoo.SOURCES, "toy", zoo.Source(load, {"mean": [0.5], "std": [0.5]}))
    monkeypatch.setitem(zoo.ZOO, "toy", (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), recipe))
    return load


def test_a_grey_network_is_trained_once_and_read_back(toy_zoo):
    path = zoo.trained("toy")
    images, labels = toy_zoo("test")
    preprocessing = zoo.SOURCES["toy"].preprocessing
    written = path.stat().st_mtime_ns
    for network in (torch.jit.load(str(path)), zoo.load_network("toy")):
        assert zoo.accuracy_of(network, images, labels, preprocessing) == 1.0
    assert path.stat().st_mtime_ns == written


def test_a_changed_recipe_trains_anew_with_labels_that_are_confused(toy_zoo, monkeypatch):
    zoo.trained("toy")
    build, recipe = zoo.ZOO["toy"]
    everything_wrong = replace(recipe, confusion=Confusion(1, taken_for=0, share=1.0))
    monkeypatch.setitem(zoo.ZOO, "toy", (build, everything_wrong))
    network = torch.jit.load(str(zoo.trained("toy")))
    images, labels = toy_zoo("test")
    right = zoo.right_answers(network, images, labels, zoo.SOURCES["toy"].preprocessing)
    assert (right == (labels == 0)).all()


def test_pixels_become_inputs_by_the_preprocessing_of_the_case():
    grey = np.full((2, 3, 5), 255, dtype=np.uint8)
    assert zoo.to_input(grey, {"mean": [0.5], "std": [0.25]}).tolist() == torch.full((2, 1, 3, 5), 2.0).tolist()
    colours = zoo.to_input(np.zeros((2, 3, 5, 3), dtype=np.uint8))
    assert colours.shape == (2, 3, 3, 5)
    assert colours[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])

"""Models that know their own inputs, fed wrongly; and honest data on which nothing may be suspected."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.data.images import labelled_images
from archrepair_core.data.preprocessing import resolve_preprocessing
from archrepair_core.errors import DatasetError
from archrepair_core.evaluate import predict
from archrepair_core.plausibility import question_data
from archrepair_core.spec import RepairSpec

RANDOM = np.random.default_rng(0)
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


class NearestPattern(nn.Module):
    """Right for images like its patterns [K, 3, 8, 8], as pixels from -1 to 1, and for no others."""

    def __init__(self, patterns_KCHW):
        super().__init__()
        self.patterns = nn.Parameter(patterns_KCHW)

    def forward(self, x):
        return -(x.unsqueeze(1) - self.patterns).square().mean((2, 3, 4)) * 40


def make(num_classes, noise=20.0, n=400):
    """A model, and images of its patterns in noise. The classes differ in brightness, too: it depends on the scale."""
    brightness = np.linspace(40, 215, num_classes)[:, None, None, None]
    patterns = np.clip(brightness + RANDOM.normal(0, 40, (num_classes, 8, 8, 3)), 0, 255)
    labels = np.arange(n) % num_classes
    pixels = np.clip(patterns[labels] + RANDOM.normal(0, noise, (n, 8, 8, 3)), 0, 255).astype(np.uint8)
    model = NearestPattern(torch.from_numpy(patterns / 127.5 - 1).float().permute(0, 3, 1, 2))
    return model.eval(), pixels, labels


def question(model, pixels, labels, *, role="test", **asked):
    images = labelled_images(pixels, labels, np.zeros(len(labels), "S16"), name=role, source="upload:x")
    datasets = {"repair": "upload:x", role: "upload:x"} | asked.pop("datasets", {})
    spec = RepairSpec.model_validate({"datasets": datasets, "preprocessing": asked})
    preprocessing = resolve_preprocessing(spec.preprocessing, images)
    logits = predict(model, images, preprocessing, batch_size=64, device="cpu")
    return question_data(model, {role: images}, preprocessing, {role: logits}, spec)


@pytest.mark.parametrize("as_floats", [False, True])
def test_a_wrong_scale_ends_the_job_with_the_right_one_to_copy(as_floats):
    model, pixels, labels = make(10)
    pixels = pixels.astype(np.float32) if as_floats else pixels
    with pytest.raises(DatasetError, match=r"would be 100\.0% with") as caught:
        question(model, pixels, labels, scale="0-255")
    assert caught.value.code == "dataset.preprocessing_mismatch"
    suggested, _ = json.JSONDecoder().raw_decode(caught.value.hint.partition(": ")[2])
    assert question(model, pixels, labels, **suggested["preprocessing"]) == ()


def test_what_the_spec_allows_is_a_warning():
    model, pixels, labels = make(10)
    (warning,) = question(model, pixels, labels, scale="0-255", datasets={"allow_mismatch": True})
    assert warning.code == "preprocessing_mismatch"


def test_colours_in_the_other_order_are_found():
    model, pixels, labels = make(10)
    tinted = pixels.astype(int)
    tinted[..., 0] //= 8
    model.patterns.data = ((model.patterns.data + 1) * torch.tensor([1 / 8, 1, 1]).view(1, 3, 1, 1)) - 1
    swapped = tinted.astype(np.uint8)[..., ::-1]
    allowed = {"allow_mismatch": True}
    (warning,) = question(model, np.ascontiguousarray(swapped), labels, datasets=allowed, **HALF)
    assert "in the order BGR" in warning.detail
    assert '"color": "bgr"' in warning.hint


ORDERS = {
    "began at 1": lambda labels: (labels + 1) % 10,
    "another order": lambda labels: np.array([3, 0, 7, 1, 9, 2, 8, 4, 6, 5])[labels],
}


@pytest.mark.parametrize("words", ORDERS)
def test_labels_in_another_order_end_the_job_with_the_map(words):
    model, pixels, labels = make(10)
    sent = ORDERS[words](labels)
    with pytest.raises(DatasetError) as caught:
        question(model, pixels, sent, **HALF)
    assert caught.value.code == "dataset.classes_mismatch"
    assert words in caught.value.detail
    for label in range(10):
        if sent[label] != label:
            assert f"{sent[label]} → {label}" in caught.value.hint


def test_outputs_sorted_as_words_are_told_from_numbers():
    model, pixels, labels = make(12)
    sent = np.array(sorted(range(12), key=str))[labels]
    # 0 and 1 keep their places, so this is not quite chance.
    (warning,) = question(model, pixels, sent, **HALF)
    assert "sorted as words" in warning.detail


def test_nothing_known_that_would_help_is_said_once():
    model, pixels, labels = make(10)
    (warning,) = question(model, pixels, RANDOM.permutation(labels), **HALF)
    assert warning.code == "at_chance"


def hard(num_classes, share):
    """Images of which a share is answered right; the others look like some other class."""
    model, pixels, labels = make(num_classes)
    shown = RANDOM.permutation(len(labels))[: int((1 - share) * len(labels))]
    labels = labels.copy()
    labels[shown] = (labels[shown] + RANDOM.integers(1, num_classes, len(shown))) % num_classes
    return model, pixels, labels


@pytest.mark.parametrize("role", ["repair", "test", "regression"])
@pytest.mark.parametrize(
    ("num_classes", "share"), [(10, 0.3), (10, 0.5), (10, 0.97), (2, 0.95), (2, 0.7), (2, 0.58), (3, 0.5)]
)
def test_honest_data_is_not_suspected(num_classes, share, role):
    assert question(*hard(num_classes, share), role=role, **HALF) == ()


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10])
def test_a_set_of_failures_alone_is_not_suspected(num_classes):
    assert question(*hard(num_classes, 0.0), role="repair", **HALF) == ()


def test_without_labels_nothing_is_judged():
    model, pixels, labels = make(10)
    assert question(model, pixels, np.full_like(labels, -1), role="repair", scale="0-255") == ()


def test_one_set_that_is_answered_well_clears_the_others():
    model, pixels, labels = make(10)
    parts, logits = {}, {}
    spec = RepairSpec.model_validate({"datasets": {"repair": "upload:x", "test": "upload:y"}, "preprocessing": HALF})
    for role, sent in (("repair", labels), ("test", (labels + 1) % 10)):
        parts[role] = labelled_images(pixels, sent, np.zeros(len(labels), "S16"), name=role, source="upload:x")
        logits[role] = predict(model, parts[role], spec.preprocessing, batch_size=64, device="cpu")
    assert question_data(model, parts, spec.preprocessing, logits, spec) == ()

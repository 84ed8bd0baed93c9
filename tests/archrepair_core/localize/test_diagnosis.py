"""The kind of fault, from the numbers alone."""

import numpy as np
import pytest
import torch

from archrepair_core.localize.diagnosis import Answers, name_kind


def answers(*, wrong_classes, confidence, count=400, replay=None):
    """A tenth of the inputs of the given true classes is answered wrongly, with the given logit."""
    labels = np.arange(count) % 4
    given = labels.copy()
    for label in wrong_classes:
        rows = np.flatnonzero(labels == label)
        given[rows[:60]] = (label + 1 + np.arange(60) % 3) % 4
    logits = torch.nn.functional.one_hot(torch.from_numpy(given), 4).float() * confidence
    return Answers(logits, labels, replay)


QUIET = {"drift_largest": 0.05}


@pytest.mark.parametrize(
    ("drift", "seen", "blamed", "kind"),
    [
        (QUIET, answers(wrong_classes=[0, 1, 2, 3], confidence=1.0), "layer1", "damaged_weights"),
        ({"drift_largest": 0.9}, answers(wrong_classes=[0], confidence=9.0), None, "input_shift"),
        (QUIET, answers(wrong_classes=[2], confidence=1.0), None, "label_or_class"),
        (QUIET, answers(wrong_classes=[0, 1, 2, 3], confidence=9.0), None, "overfitting"),
        (QUIET, answers(wrong_classes=[0, 1, 2, 3], confidence=1.0), None, "unknown"),
        (QUIET, answers(wrong_classes=[0, 1, 2, 3], confidence=1.0, replay=0.99), None, "overfitting"),
        (QUIET, answers(wrong_classes=[0, 1, 2, 3], confidence=9.0, replay=0.4), None, "unknown"),
        (QUIET, answers(wrong_classes=[], confidence=9.0), None, "unknown"),
        (QUIET, None, None, "unknown"),
        ({}, None, None, "unknown"),
    ],
)
def test_the_kind_is_read_off_drift_and_answers(drift, seen, blamed, kind):
    found, evidence = name_kind(drift, seen, blamed=blamed)
    assert found == kind
    assert drift.items() <= evidence.items()


def test_a_recognised_corruption_explains_drift_and_failures():
    seen = answers(wrong_classes=[0, 1, 2, 3], confidence=9.0)
    found, evidence = name_kind(QUIET, seen, blamed="layer1", recognised="jpeg_compression (quality 75)")
    assert found == "input_shift"
    assert evidence["recognised"] == "jpeg_compression (quality 75)"

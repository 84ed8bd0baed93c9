"""Test inputs to look at: what the repair broke, fixed, and left wrong, the most confident errors first.

The report names them (`examples`: row, label, answers); the pictures themselves are only in the html.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from archrepair_core.answers import Answers
from archrepair_core.data.images import LabelledImages
from archrepair_core.evaluate import log_probabilities

SHOWN = 12
# Pixels of the longer side; smaller images stay as they are, the page enlarges them without smoothing.
THUMBNAIL = 96
# Of a picture that stands beside text.
MAX_WIDTH = 420


def choose_examples(before: Tensor | None, after: Tensor, labels: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Up to twelve of each group, [N, K] logits and N labels: first those whose wrong answer was given most surely.

    Without `before` there is one group, of what is `wrong`.
    """
    labels_N = torch.as_tensor(labels)
    if before is None:
        sure, said = _answers(after)
        return {"wrong": [_example(row, labels_N, after=(sure, said)) for row in _surest(said != labels_N, sure)]}
    (sure_before, said_before), (sure_after, said_after) = map(_answers, (before, after))
    right_before, right_after = said_before == labels_N, said_after == labels_N
    groups = {
        "broken": (right_before & ~right_after, sure_after),
        "fixed": (~right_before & right_after, sure_before),
        "still_wrong": (~right_before & ~right_after, sure_after),
    }
    answers = {"before": (sure_before, said_before), "after": (sure_after, said_after)}
    return {
        name: [_example(row, labels_N, **answers) for row in _surest(where, sure)]
        for name, (where, sure) in groups.items()
    }


def _example(row: int, labels_N: Tensor, **answers: tuple[Tensor, Tensor]) -> dict[str, Any]:
    shown = {
        name: {"predicted": int(said[row]), "confidence": float(sure[row])} for name, (sure, said) in answers.items()
    }
    return {"row": row, "label": int(labels_N[row]), **shown}


def _answers(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and answer per row; a row with NaN answers −1 with confidence 0."""
    sure, said = log_probabilities(logits).exp().max(dim=1)
    missing = logits.isnan().any(dim=1)
    return torch.where(missing, 0.0, sure), torch.where(missing, -1, said)


def _surest(where: Tensor, sure: Tensor) -> list[int]:
    rows = where.nonzero().flatten()
    order = sure[rows].argsort(descending=True, stable=True)[:SHOWN]
    return [int(row) for row in rows[order]]


def draw_examples(examples: Mapping[str, list[dict[str, Any]]], test: LabelledImages) -> dict[str, bytes]:
    """A small PNG of every example, under `GROUP/PLACE`; none where pixels are nothing to look at (two channels…)."""
    channels = test.images.shape[3]
    if channels not in (1, 3, 4):
        return {}
    return {
        f"{group}/{place}": thumbnail(test.images[example["row"] : example["row"] + 1][0])
        for group, rows in examples.items()
        for place, example in enumerate(rows)
    }


def thumbnail(image_HWC: np.ndarray) -> bytes:
    """The image as PNG, at most 96 pixels wide and high; floats beyond 0–1 are stretched to what they span."""
    pixels = image_HWC
    if pixels.dtype != np.uint8:
        low, high = min(0.0, float(pixels.min())), max(1.0, float(pixels.max()))
        pixels = np.rint((np.nan_to_num(pixels) - low) / (high - low) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3]))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    written = io.BytesIO()
    picture.save(written, "png", optimize=True)
    return written.getvalue()


def narrowed(png: bytes) -> bytes:
    """The picture as PNG, no wider than the page shows it."""
    with Image.open(io.BytesIO(png)) as picture:
        if picture.width <= MAX_WIDTH:
            return png
        smaller = picture.resize((MAX_WIDTH, picture.height * MAX_WIDTH // picture.width))
    written = io.BytesIO()
    smaller.save(written, "png", optimize=True)
    return written.getvalue()


def examples_of(answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """The examples of the test set."""
    before = answers.before["test"] if answers.before else None
    return choose_examples(before, answers.after["test"], answers.images["test"].labels)

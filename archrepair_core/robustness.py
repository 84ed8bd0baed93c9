"""Accuracy under the common corruptions, before and after, and the mean corruption error.

Inputs are corrupted a batch at a time, once for all models, and never kept: memory does not grow with the data, but for
one byte per input, corruption and model. Hendrycks & Dietterich (ICLR 2019) divide by the errors of AlexNet; here the
original model is what the errors are divided by.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from archrepair_core.data.corruptions import KINDS, SEVERITIES, Corruption, at_severity
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import DatasetError
from archrepair_core.evaluate import answers_of
from archrepair_core.match import full_scale_of
from archrepair_core.modes import eval_mode
from archrepair_core.spec import Preprocessing
from archrepair_core.statistics import mean_below_zero_p, mean_interval

DEFAULT_MAX_INPUTS = 1000
# Corruptions work on float32 copies, several at a time.
BATCH_BYTES = 4 * 2**20
MAX_BATCH = 128

# Told the share of the work that is done, 0–1, and what it was.
OnShare = Callable[[float, str], None]


def drawn_rows(count: int, *, max_inputs: int, seed: int) -> np.ndarray:
    """So many of `count` rows at most, in order, each as likely as any other."""
    if count <= max_inputs:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, max_inputs, replace=False))


def measure_robustness(
    models: Mapping[str, nn.Module],
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    kinds: Sequence[str],
    seed: int,
    device: torch.device | str,
    on_share: OnShare | None = None,
) -> dict[str, Any]:
    """What the models `after` and, where there is one, `before` answer to corrupted images, as JSON data.

    The same seed, images and kinds give the same corruptions. Raises DatasetError for images that have no white.
    """
    started = time.monotonic()
    suite = {kind: _severities(kind, images, preprocessing) for kind in kinds}
    wrong = {name: np.zeros((len(images), len(kinds)), dtype=np.uint8) for name in models}
    cells = {name: np.zeros((len(kinds), len(SEVERITIES)), dtype=np.int64) for name in models}
    step = _batch_size(images)
    with torch.inference_mode():
        for start in range(0, len(images), step):
            rows = range(start, min(start + step, len(images)))
            pixels, labels = images.images[start : rows.stop], torch.as_tensor(images.labels[start : rows.stop])
            for place, corruptions in enumerate(suite.values()):
                for severity, corruption in enumerate(corruptions):
                    corrupted = corruption(pixels, _seeds(seed, place * len(SEVERITIES) + severity, rows))
                    x_NCHW = to_tensor(corrupted, preprocessing).to(device)
                    for name, model in models.items():
                        missed = _missed(model, x_NCHW, labels, name=images.name)
                        wrong[name][start : rows.stop, place] += missed
                        cells[name][place, severity] += int(missed.sum())
                if on_share is not None:
                    on_share((start + len(rows) * (place + 1) / len(suite)) / len(images), list(suite)[place])
    found = summarize_robustness(wrong.get("before"), wrong["after"])
    accuracies = {name: 1 - cells[name] / len(images) for name in models}
    for place, (kind, row) in enumerate(zip(kinds, found["kinds"], strict=True)):
        row |= {"kind": kind, "unit": KINDS[kind].unit, "parameters": [each.parameter for each in suite[kind]]}
        row["before"] = accuracies["before"][place].tolist() if "before" in models else None
        row["after"] = accuracies["after"][place].tolist()
    seconds = time.monotonic() - started
    return {"n": len(images), "seed": seed, "severities": list(SEVERITIES), **found, "seconds": seconds}


def summarize_robustness(wrong_before: np.ndarray | None, wrong_after: np.ndarray) -> dict[str, Any]:
    """Means over all corruptions and over each; `wrong_*` [N, kinds] say at how many severities each input was missed.

    Intervals are over inputs, each with all its corruptions: corrupted copies of one image are not independent.
    """
    places = range(wrong_after.shape[1])
    ratios: list[float | None] = [None for _ in places]
    worse_p, mce = None, {"value": None, "ci95": None}
    if wrong_before is not None:
        worse_p = mean_below_zero_p(wrong_before.sum(1, dtype=float) - wrong_after.sum(1, dtype=float))
        ratios, mce = corruption_error(wrong_before, wrong_after)
    kinds = [
        {
            "mean": _mean_accuracy(None if wrong_before is None else wrong_before[:, [place]], wrong_after[:, [place]]),
            "error_ratio": ratios[place],
        }
        for place in places
    ]
    return {"accuracy": _mean_accuracy(wrong_before, wrong_after), "worse_p": worse_p, "mce": mce, "kinds": kinds}


def _mean_accuracy(wrong_before: np.ndarray | None, wrong_after: np.ndarray) -> dict[str, Any]:
    """Accuracy over all severities of some kinds, [N, kinds] of missed ones, with intervals over inputs."""
    cells = wrong_after.shape[1] * len(SEVERITIES)
    after = 1 - wrong_after.sum(1, dtype=np.int64) / cells
    accuracy = {"before": None, "after": float(after.mean()), "after_ci95": mean_interval(after, limits=(0.0, 1.0))}
    if wrong_before is None:
        return accuracy | {"change": None, "change_ci95": None}
    before = 1 - wrong_before.sum(1, dtype=np.int64) / cells
    change = after - before
    interval = mean_interval(change, limits=(-1.0, 1.0))
    return accuracy | {"before": float(before.mean()), "change": float(change.mean()), "change_ci95": interval}


def corruption_error(before: np.ndarray, after: np.ndarray) -> tuple[list[float | None], dict[str, Any]]:
    """Errors after over errors before, per kind, and their mean with its interval by linearisation.

    A kind the original never fails on has no ratio, and the mean leaves it out.
    """
    errors_before, errors_after = before.sum(0, dtype=np.int64), after.sum(0, dtype=np.int64)
    known = errors_before > 0
    ratios = [float(errors_after[k] / errors_before[k]) if known[k] else None for k in range(len(errors_before))]
    if not known.any():
        return ratios, {"value": None, "ci95": None}
    ratio_K = errors_after[known] / errors_before[known]
    # Of a sum of ratios A/B, input i moves A/B by (a_i − r·b_i)/B.
    influence_N = ((after[:, known] - ratio_K * before[:, known]) / errors_before[known]).mean(1)
    n = len(influence_N)
    reach = float(norm.ppf(0.975)) * math.sqrt(float((influence_N**2).sum()) * n / max(n - 1, 1))
    value = float(ratio_K.mean())
    return ratios, {"value": value, "ci95": (max(0.0, value - reach), value + reach)}


def _severities(kind: str, images: LabelledImages, preprocessing: Preprocessing) -> list[Corruption]:
    _, height, width, channels = images.images.shape
    full_scale = full_scale_of(images.images, preprocessing)
    if full_scale is None or channels not in (1, 3):
        why = f"they have {channels} channels" if channels not in (1, 3) else "their values have no known range"
        raise DatasetError(
            "not_corruptible",
            f"corruptions are defined for pictures of 1 or 3 channels from black to white; of {images.name} {why}",
            hint="set evaluation.corruptions to none, or preprocessing.scale to the range of the pixels",
        )
    return [at_severity(kind, severity, min(height, width), full_scale=full_scale) for severity in SEVERITIES]


def _seeds(seed: int, cell: int, rows: range) -> list[int]:
    """One seed per image and corruption, whatever the batches."""
    return [(((seed << 16) + cell) << 40) + row for row in rows]


def _batch_size(images: LabelledImages) -> int:
    image_bytes = math.prod(images.images.shape[1:]) * images.images.dtype.itemsize
    return min(MAX_BATCH, max(1, BATCH_BYTES // image_bytes))


def _missed(model: nn.Module, x_NCHW: Tensor, labels_N: Tensor, *, name: str) -> np.ndarray:
    with eval_mode(model):
        return (answers_of(model, x_NCHW, name=name) != labels_N).numpy()

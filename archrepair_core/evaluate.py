"""Run a model over a dataset, and say what a repair changed: fixed, broken, by class, with intervals.

Legend: N samples, K classes. `before` and `after` are logits of the original and the repaired model on the same inputs.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import DatasetError, ModelError
from archrepair_core.modes import eval_mode
from archrepair_core.spec import Preprocessing
from archrepair_core.statistics import (
    holm,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
    worsening_p,
)

ECE_BINS = 15
CONFUSIONS_SHOWN = 10
# What torch, TorchScript and hand-written forward methods raise for an input they cannot take.
_REJECTIONS = (torch.jit.Error, RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def predict(
    model: nn.Module,
    dataset: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: torch.device | str,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Logits of every sample, float32 [N, K] on the CPU. The model is on `device`; its train/eval modes are restored.

    `on_batch` is told (samples done, samples in all). Raises DatasetError when the model rejects the images, ModelError
    when it does not return logits.
    """
    logits = []
    with torch.inference_mode(), eval_mode(model):
        for start in range(0, len(dataset), batch_size):
            x_NCHW = to_tensor(dataset.images[start : start + batch_size], preprocessing).to(device)
            logits.append(_logits(model, x_NCHW, name=dataset.name).float().cpu())
            if on_batch:
                on_batch(start + len(x_NCHW), len(dataset))
    return torch.cat(logits)


def answers_of(model: nn.Module, x_NCHW: Tensor, *, name: str) -> Tensor:
    """The class that the model, in eval mode, answers to each of a batch, int64 [N] on the CPU; −1 for a NaN."""
    return predicted(_logits(model, x_NCHW, name=name).float().cpu())


def _logits(model: nn.Module, x_NCHW: Tensor, *, name: str) -> Tensor:
    shape = _sizes(x_NCHW)
    output = run_model(model, x_NCHW, name=name)
    if not isinstance(output, Tensor):
        raise ModelError(
            "output_not_logits",
            f"the model returns a {type(output).__name__}, not one tensor of logits",
            hint="export a model whose forward returns the logits, N×K",
        )
    if output.ndim != 2 or output.shape[0] != x_NCHW.shape[0] or output.shape[1] < 2 or not output.is_floating_point():
        raise ModelError(
            "output_not_logits",
            f"for a batch of {shape} the model returns {output.dtype} of shape "
            f"{list(output.shape)}, not logits [{len(x_NCHW)}, classes]",
            hint="export a classifier whose forward returns one row of logits per image",
        )
    return output


def run_model(model: nn.Module, x_NCHW: Tensor, *, name: str) -> Any:
    """The model's whole answer to a batch of the dataset `name`. Raises DatasetError when it rejects the images."""
    try:
        return model(x_NCHW)
    except torch.OutOfMemoryError:
        raise
    except _REJECTIONS as error:
        if "allocate memory" in str(error):  # on the CPU no class of its own says so
            raise
        raise DatasetError(
            "shape_mismatch",
            f"the model rejects the images of {name} as a batch of {_sizes(x_NCHW)} (N×C×H×W): {_reason(error)}",
            hint="set preprocessing.resize and preprocessing.color to what the model was trained on",
        ) from error


def _sizes(x_NCHW: Tensor) -> str:
    return "×".join(str(size) for size in x_NCHW.shape)


def _reason(error: Exception) -> str:
    """The one line that says what was wrong: TorchScript puts it last, after a traceback; eager torch puts it first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "TorchScript" in str(error) else lines[0]


def summarize_split(before: Tensor | None, after: Tensor, labels: np.ndarray) -> dict[str, Any]:
    """What changed on one split, as JSON data: rates with 95 % intervals, exact tests, classes, calibration.

    Rows with a NaN logit count as wrong. `repair_rate` is of the inputs that failed before, `broken_rate` of all.
    Without `before`, of one model: no changes, and the confusions there are.
    """
    labels_N = torch.as_tensor(labels)
    if before is None:
        return _summarize_alone(after, labels_N)
    predicted_before, predicted_after = predicted(before), predicted(after)
    right_before, right_after = predicted_before == labels_N, predicted_after == labels_N
    fixed, broken = int((~right_before & right_after).sum()), int((right_before & ~right_after).sum())
    n, failing = len(labels_N), int((~right_before).sum())
    classes = _per_class(right_before, right_after, labels_N)
    return {
        "n": n,
        "accuracy": {
            "before": _rate(n - failing, n),
            "after": _rate(n - failing + fixed - broken, n),
            "after_ci95": wilson_interval(n - failing + fixed - broken, n),
            "change": _rate(fixed - broken, n),
            "change_ci95": paired_difference_interval(fixed, broken, n),
        },
        "fixed": fixed,
        "broken": broken,
        "still_wrong": failing - fixed,
        "still_right": n - failing - broken,
        "repair_rate": {"value": _rate(fixed, failing), "ci95": wilson_interval(fixed, failing)},
        "broken_rate": {"value": _rate(broken, n), "ci95": wilson_interval(broken, n)},
        "mcnemar_p": mcnemar_exact(fixed, broken),
        "per_class": classes,
        "worst_class": min(classes, key=lambda row: (row["p_holm"], row["after"] - row["before"]), default=None),
        "nll": {"before": _nll(before, labels_N), "after": _nll(after, labels_N)},
        "ece": {"before": _ece(before, labels_N), "after": _ece(after, labels_N)},
        "confusion_change": _confusion_change(predicted_before, predicted_after, labels_N),
    }


def _summarize_alone(logits: Tensor, labels_N: Tensor) -> dict[str, Any]:
    answers = predicted(logits)
    right_N = answers == labels_N
    n, right = len(labels_N), int(right_N.sum())
    total, hits = torch.bincount(labels_N), torch.bincount(labels_N[right_N], minlength=int(labels_N.max()) + 1)
    accuracy = {"before": None, "after": _rate(right, n), "after_ci95": wilson_interval(right, n)}
    return {
        "n": n,
        "accuracy": accuracy | {"change": None, "change_ci95": None},
        "right": right,
        "wrong": n - right,
        "per_class": [
            {
                "label": label,
                "n": int(total[label]),
                "after": int(hits[label]) / int(total[label]),
                "after_ci95": wilson_interval(int(hits[label]), int(total[label])),
            }
            for label in total.nonzero().flatten().tolist()
        ],
        "nll": {"before": None, "after": _nll(logits, labels_N)},
        "ece": {"before": None, "after": _ece(logits, labels_N)},
        "confusions": [
            {"label": label, "predicted": said, "count": count}
            for (label, said), count in sorted(
                _confusions(answers, labels_N).items(), key=lambda item: (-item[1], item[0])
            )[:CONFUSIONS_SHOWN]
        ],
    }


def _rate(count: int, n: int) -> float | None:
    return count / n if n else None


def predicted(logits: Tensor) -> Tensor:
    """The class each row of [N, K] answers; −1 for a row with NaN."""
    # argmax takes NaN for the largest value; a model that returns it has not answered.
    return torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))


def _per_class(right_before: Tensor, right_after: Tensor, labels_N: Tensor) -> list[dict[str, Any]]:
    """One row per class that has samples; `p_holm` is of the class having got worse, adjusted over the classes."""
    num_classes = int(labels_N.max()) + 1 if len(labels_N) else 0

    def count(where: Tensor) -> np.ndarray:
        return torch.bincount(labels_N[where], minlength=num_classes).numpy()

    total, before, after = count(torch.ones_like(right_before)), count(right_before), count(right_after)
    fixed, broken = count(~right_before & right_after), count(right_before & ~right_after)
    present = np.flatnonzero(total)
    adjusted = holm(worsening_p(fixed[present], broken[present]).tolist())
    return [
        {
            "label": int(label),
            "n": int(total[label]),
            "before": float(before[label] / total[label]),
            "after": float(after[label] / total[label]),
            "fixed": int(fixed[label]),
            "broken": int(broken[label]),
            "change_ci95": paired_difference_interval(int(fixed[label]), int(broken[label]), int(total[label])),
            "p_holm": p,
        }
        for label, p in zip(present, adjusted, strict=True)
    ]


def reliability(logits: Tensor, labels: np.ndarray) -> list[dict[str, Any]]:
    """What `ece` is made of, per bin that has samples: how many, their mean confidence, and how many were right."""
    confidence, predicted, bins = _binned(logits)
    right = (predicted == torch.as_tensor(labels)).double()
    counts = torch.bincount(bins, minlength=ECE_BINS)
    sums = [
        torch.zeros(ECE_BINS, dtype=torch.double).index_add(0, bins, part.double())
        for part in (confidence.nan_to_num(0.0), right)
    ]
    return [
        {"n": int(n), "confidence": float(sums[0][bin_] / n), "accuracy": float(sums[1][bin_] / n)}
        for bin_, n in enumerate(counts)
        if n
    ]


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax, except for a model that ends in a softmax: its rows are probabilities already."""
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(len(logits)), atol=1e-4):
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
    return logits.log_softmax(dim=1)


def _nll(logits: Tensor, labels_N: Tensor) -> float | None:
    return _finite(nn.functional.nll_loss(log_probabilities(logits), labels_N).item())


def _ece(logits: Tensor, labels_N: Tensor) -> float | None:
    """Expected calibration error, 15 equal bins of confidence (Guo et al., ICML 2017, equation 3)."""
    confidence, predicted, bins = _binned(logits)
    gaps = torch.zeros(ECE_BINS).index_add(0, bins, confidence - (predicted == labels_N).float())
    return _finite((gaps.abs().sum() / len(labels_N)).item())


def _binned(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, answer and bin of every row; a row with NaN stands in the lowest bin."""
    confidence, predicted = log_probabilities(logits).exp().max(dim=1)
    return confidence, predicted, (confidence.nan_to_num(0.0) * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _confusion_change(predicted_before: Tensor, predicted_after: Tensor, labels_N: Tensor) -> list[dict[str, int]]:
    """The confusions that changed most: so many samples of `label` were, and are now, taken for `predicted`."""
    before, after = (_confusions(predicted, labels_N) for predicted in (predicted_before, predicted_after))
    changed = [pair for pair in before | after if before[pair] != after[pair]]
    changed.sort(key=lambda pair: (-abs(after[pair] - before[pair]), pair))
    return [
        {"label": label, "predicted": predicted, "before": before[label, predicted], "after": after[label, predicted]}
        for label, predicted in changed[:CONFUSIONS_SHOWN]
    ]


def _confusions(predicted: Tensor, labels_N: Tensor) -> Counter[tuple[int, int]]:
    """How often each (label, wrong prediction) came; unanswered rows are left out."""
    wrong = (predicted != labels_N) & (predicted >= 0)
    return Counter(zip(labels_N[wrong].tolist(), predicted[wrong].tolist(), strict=True))

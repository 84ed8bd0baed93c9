"""What kind of fault it looks like, with the numbers behind it. The limits of drift were set on ResNet-20,
undamaged, under shifts and with planted faults whose seeds are not those that benchmarks/planted_faults.py reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archrepair_core.localize.drift import Drift
from archrepair_core.localize.rank import Floats

# Nats per channel: healthy networks stay below on inputs like those they were trained on.
DRIFT_FLOOR = 0.25
# A damaged block's jump, and how many times every divergence before it that is. Inputs of one class alone jumped 0.12;
# an input shift also grows from layer to layer, but no jump was 1.3 times what came before.
JUMP_FLOOR, OUTLIER_RATIO = 0.15, 2.0
# Standard errors by which the jump must stand clear of the floor.
CLEAR = 2.0
# A block whose own map differs from the reference's by this share of its variance, and ten times the median block's.
CHANGED, CHANGED_RATIO = 0.01, 10.0
# A class fault: one class holds this share of all failures, at this multiple of the overall error rate.
CLASS_SHARE, CLASS_LIFT = 0.5, 3.0
# Overfitting: answers on data given back as training data are better by this much, or failures this confident. The
# mean confidence of failures was 0.79 and 0.81 in two networks that had learned their training sets by heart, 0.34 to
# 0.51 in three that were far from it.
GENERALISATION_GAP, CONFIDENT = 0.15, 0.65

Evidence = dict[str, float | str]


@dataclass(frozen=True)
class Answers:
    """Logits [N, K] and labels of the repair inputs, and the accuracy on replayed training data, where there is any."""

    logits_NK: Tensor
    labels_N: npt.NDArray[np.int64]
    replay_accuracy: float | None


def standing_out(drift: Drift, names: Sequence[str], *, among: Sequence[int]) -> tuple[str | None, Evidence]:
    """The block whose drift decides, or None, and why: its jump against all layers before the block, and its error."""
    if not drift.layers:
        return None, {}
    best = max(among, key=lambda place: drift.score_BN[0, place])
    jump, error = float(drift.jump_BN[0, best]), float(drift.jump_BN[:, best].std())
    before = float(drift.before_N[best])
    evidence: Evidence = {
        "drift_block": names[best],
        "drift_onset": float(drift.score_BN[0, best]),
        "drift_jump": jump,
        "drift_jump_sd": error,
        "drift_before": before,
        "drift_robust_z": _robust_z(drift.jump_BN[0, list(among)], jump),
        "drift_first_layer": float(drift.divergence_BL[0, 0]),
        "drift_largest": float(drift.divergence_BL[0].max()),
    }
    decides = jump - CLEAR * error >= JUMP_FLOOR and jump >= OUTLIER_RATIO * before
    return (names[best] if decides else None), evidence


def standing_apart(score_BN: Floats, names: Sequence[str]) -> tuple[str | None, Evidence]:
    """The block whose map differs from the reference's far more than the others' do, or None, and why."""
    best = int(score_BN[0].argmax())
    change, typical = float(score_BN[0, best]), float(np.median(score_BN[0]))
    evidence: Evidence = {"reference_block": names[best], "reference_change": change, "reference_median": typical}
    return (names[best] if change >= CHANGED and change >= CHANGED_RATIO * typical else None), evidence


def name_kind(
    drift: Evidence, answers: Answers | None, *, blamed: str | None, recognised: str | None = None
) -> tuple[str, Evidence]:
    """The kind of fault and the numbers it was read off; `answers` is None for unlabelled inputs.

    `recognised` is a corruption that turns known inputs into such as these: it explains all that follows from it.
    """
    evidence = dict(drift)
    largest = drift.get("drift_largest")
    if answers is not None:
        evidence |= _read_answers(answers)
    if recognised is not None:
        return "input_shift", evidence | {"recognised": recognised}
    if blamed is not None:
        return "damaged_weights", evidence
    if isinstance(largest, float) and largest >= DRIFT_FLOOR:
        return "input_shift", evidence
    if answers is None or not evidence.get("failures"):
        return "unknown", evidence
    return _kind_of_answers(evidence), evidence


def _kind_of_answers(evidence: Mapping[str, float | str]) -> str:
    numbers = {name: value for name, value in evidence.items() if isinstance(value, float)}
    if numbers["class_share"] >= CLASS_SHARE and numbers["class_lift"] >= CLASS_LIFT:
        return "label_or_class"
    gap = numbers.get("generalisation_gap")
    if gap >= GENERALISATION_GAP if gap is not None else numbers["failing_confidence"] >= CONFIDENT:
        return "overfitting"
    return "unknown"


def _read_answers(answers: Answers) -> Evidence:
    """Where the failures are, by true and by given class, and how confident they are."""
    given = answers.logits_NK.argmax(1).numpy()
    wrong = given != answers.labels_N
    if not wrong.any():
        return {"failures": 0.0}
    confidence = torch.softmax(answers.logits_NK, 1).max(1).values.numpy()
    classes = np.arange(answers.logits_NK.shape[1])
    shares = [(side[wrong, None] == classes).mean(0) for side in (answers.labels_N, given)]
    side = int(shares[1].max() > shares[0].max())
    worst = int(shares[side].argmax())
    usual = float(((answers.labels_N, given)[side] == worst).mean())
    evidence: Evidence = {
        "failures": float(wrong.sum()),
        "class": f"{('labelled', 'answered')[side]} {worst}",
        "class_share": float(shares[side][worst]),
        "class_lift": float(shares[side][worst]) / max(usual, 1e-9),
        "failing_confidence": float(confidence[wrong].mean()),
        "passing_confidence": float(confidence[~wrong].mean()) if not wrong.all() else 0.0,
    }
    if answers.replay_accuracy is not None:
        evidence["generalisation_gap"] = answers.replay_accuracy - float(1 - wrong.mean())
    return evidence


def _robust_z(scores: Floats, largest: float) -> float:
    """Median absolute deviations by which the best block's jump exceeds the median block's."""
    deviation = 1.4826 * float(np.median(np.abs(scores - np.median(scores))))
    return float((largest - np.median(scores)) / max(deviation, 1e-6))

"""Does the data reach the model as its training data did? Where its answers say no, what would make them right.

A model that is fed another scale, colour order or size than it was trained on, or is compared with labels in another
order, looks broken and is not: no repair should hide that. Nothing is ever applied: it is an error, or a warning.

Legend: N samples, K classes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import resolve_preprocessing
from archrepair_core.data.split import DataWarning
from archrepair_core.errors import DatasetError
from archrepair_core.evaluate import predict
from archrepair_core.spec import Preprocessing, RepairSpec
from archrepair_core.statistics import paired_difference_interval, wilson_interval

# Judged by the first of these that has labels: what was chosen for its failures says least about the rest.
JUDGED = ("regression", "replay", "test", "validation", "repair")
MIN_JUDGED = 30
# Every alternative is tried on so many inputs, and the best one measured on others.
NUM_TRIED, NUM_MEASURED = 96, 256
# Large sizes are tried on a third of them, and nothing more once this much is right.
NUM_TRIED_OTHER_SIZE = 32
RIGHT_ENOUGH = 0.7
BATCH_SIZE = 64
CONFIDENCE = 0.99
# A model is surer than right by this much, or no better than chance, before anything is tried at all.
OVERCONFIDENCE = 0.2
# Above chance, with CONFIDENCE: what an alternative must reach for the job to end. Fewer classes prove little.
SURE_ABOVE_CHANCE = 0.3
SURE_OF_ORDER, SURE_OF_ANY_ORDER = 0.5, 0.7
MIN_CLASSES_SURE = 5
# For a warning: how much an alternative must gain, and gain for certain.
GAIN, CERTAIN_GAIN = 0.15, 0.1
ORDER_EXPLAINS = 0.5
KEPT_GAIN = 0.05
# Images are not made larger than so many times their side: that would take minutes.
SIDES, MAX_GROWTH = (28, 32, 64, 96, 224), 4

Numbers = tuple[float, ...]
# How models are usually fed: words, full range of the pixels, then mean and std in that range, by number of channels.
INPUTS: Mapping[int, Sequence[tuple[str, float, Numbers | None, Numbers | None]]] = {
    3: (
        ("pixels from 0 to 1", 1.0, None, None),
        ("pixels from 0 to 255", 255.0, None, None),
        ("ImageNet's mean and std", 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("CIFAR-10's mean and std", 1.0, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ("pixels from -1 to 1", 1.0, (0.5,) * 3, (0.5,) * 3),
        ("pixels from 0 to 255 minus ImageNet's mean", 255.0, (123.675, 116.28, 103.53), (1.0,) * 3),
    ),
    1: (
        ("pixels from 0 to 1", 1.0, None, None),
        ("pixels from 0 to 255", 255.0, None, None),
        ("ImageNet's mean and std", 1.0, (0.449,), (0.226,)),
        ("MNIST's mean and std", 1.0, (0.1307,), (0.3081,)),
        ("pixels from -1 to 1", 1.0, (0.5,), (0.5,)),
    ),
}


@dataclass(frozen=True)
class Standing:
    """How a model does on a set: accuracy, mean confidence, and the accuracy that its answers shuffled would have."""

    n: int
    num_right: int
    confidence: float
    chance: float

    @property
    def accuracy(self) -> float:
        """0–1."""
        return self.num_right / self.n

    @property
    def is_at_chance(self) -> bool:
        """No better than the same answers shuffled. Where one class is most of a set, that says nothing."""
        return wilson_interval(self.num_right, self.n)[0] <= self.chance <= 0.6

    @property
    def is_chosen_for_failing(self) -> bool:
        """Clearly below chance, as a set of failures is."""
        return wilson_interval(self.num_right, self.n)[1] < self.chance / 2

    @property
    def is_plausible(self) -> bool:
        """Better than chance, and not far surer than right."""
        return not self.is_at_chance and self.confidence - self.accuracy < OVERCONFIDENCE


@dataclass(frozen=True)
class Doubt:
    """What would raise the accuracy; the job ends where that is `sure`."""

    warning: DataWarning
    sure: bool


def question_data(
    model: nn.Module,
    parts: Mapping[str, LabelledImages],
    preprocessing: Preprocessing,
    logits: Mapping[str, Tensor],
    spec: RepairSpec,
) -> tuple[DataWarning, ...]:
    """Warnings about sets whose labels or preprocessing are not the model's own; `logits` are its answers to them.

    Silent as soon as the model does on one set as well as it thinks. Raises DatasetError `preprocessing_mismatch` or
    `classes_mismatch` where it is at chance and something else would clearly not be, unless the spec allows it.
    """
    judged = [role for role in JUDGED if role in parts and parts[role].labelled and len(parts[role]) >= MIN_JUDGED]
    standings = {role: stand(logits[role], parts[role].labels) for role in judged}
    if not judged or any(standing.is_plausible for standing in standings.values()):
        return ()
    role = judged[0]
    images, standing = parts[role], standings[role]
    given = role != "repair" and getattr(spec.datasets, role) is not None
    doubt = question_classes(images, logits[role], standing, representative=given)
    if doubt is None and not standing.is_chosen_for_failing:
        doubt = question_preprocessing(model, images, preprocessing, logits[role], standing) or _unexplained(
            images.name, standing
        )
    if doubt is None:
        return ()
    if doubt.sure and not spec.datasets.allow_mismatch:
        raise DatasetError(
            doubt.warning.code,
            doubt.warning.detail,
            hint=f"{doubt.warning.hint}, or set datasets.allow_mismatch to go on as it is",
        )
    return (doubt.warning,)


def stand(logits: Tensor, labels: np.ndarray) -> Standing:
    """Legend: logits [N, K], labels [N]."""
    confidence_N, answers_N = logits.softmax(1).max(1)
    answers, num_classes = answers_N.numpy(), max(logits.shape[1], int(labels.max()) + 1)
    shares = (np.bincount(values, minlength=num_classes) / len(labels) for values in (labels, answers))
    return Standing(len(labels), int((answers == labels).sum()), float(confidence_N.mean()), float(np.dot(*shares)))


def _unexplained(name: str, standing: Standing) -> Doubt | None:
    if not standing.is_at_chance:
        return None
    detail = (
        f"the original's accuracy on {name} is {standing.accuracy:.1%} of {standing.n} inputs, which is chance, and "
        "none of the usual preprocessings and orders of classes would raise it"
    )
    return Doubt(DataWarning("at_chance", detail, "check preprocessing and labels against the training code"), False)


# --- the order of the classes ---


def question_classes(
    images: LabelledImages, logits: Tensor, standing: Standing, *, representative: bool
) -> Doubt | None:
    """Whether labels in another order would be the model's answers. What was chosen for its failures, as sets that are
    not `representative` may be, says little where there are few classes: swapped ones and failures look alike."""
    answers, num_classes = logits.argmax(1).numpy(), logits.shape[1]
    order = np.random.default_rng(0).permutation(standing.n)
    fitted, measured = order[: standing.n // 2], order[standing.n // 2 :]
    labels = images.labels
    seen = np.unique(labels)
    is_few = len(seen) < MIN_CLASSES_SURE
    if is_few and not representative:
        return None
    now = labels[measured] == answers[measured]
    best: tuple[float, str, np.ndarray, float] | None = None
    for words, output_of_label, bar in _orders(labels[fitted], answers[fitted], num_classes):
        then = output_of_label[labels[measured]] == answers[measured]
        if best is None or then.mean() > best[0]:
            best = (float(then.mean()), words, output_of_label, bar)
    assert best is not None, "there is more than one order"
    accuracy, words, output_of_label, bar = best
    then = output_of_label[labels[measured]] == answers[measured]
    if accuracy < ORDER_EXPLAINS or not _gains(now, then):
        return None
    moved = (output_of_label[seen] != seen).mean()
    sure = standing.is_at_chance and not is_few and moved >= 0.5 and _low(then) >= bar
    detail = (
        f"the original's accuracy on {images.name} is {now.mean():.1%}, and would be {accuracy:.1%} if {words} "
        f"({len(measured)} inputs the order was not found on)"
    )
    return Doubt(DataWarning("classes_mismatch", detail, _class_hint(images, output_of_label)), sure)


def _orders(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """Words, output [K] of each label, and how much of the answers it must explain."""
    identity = np.arange(num_classes)
    as_words = np.array(sorted(identity, key=str))
    yield "labels began at 1, where the model's outputs begin at 0", (identity - 1) % num_classes, SURE_OF_ORDER
    yield "outputs began at 1, where the labels begin at 0", (identity + 1) % num_classes, SURE_OF_ORDER
    yield "the model's outputs were sorted as words are: 0, 1, 10, 11, …, 2", np.argsort(as_words), SURE_OF_ORDER
    yield "labels had been sorted as words are: 0, 1, 10, 11, …, 2", as_words, SURE_OF_ORDER
    seen, rows = np.unique(labels, return_inverse=True)
    told, columns = np.unique(answers, return_inverse=True)
    counts = np.zeros((len(seen), len(told)))
    np.add.at(counts, (rows, columns), 1)
    row, column = linear_sum_assignment(counts, maximize=True)
    fitted = identity.copy()
    fitted[seen[row]] = told[column]
    yield "the classes had another order", fitted, SURE_OF_ANY_ORDER


def _class_hint(images: LabelledImages, output_of_label: np.ndarray) -> str:
    if images.class_names is not None and len(set(output_of_label)) == len(images.class_names):
        names = np.array(images.class_names, dtype=object)[np.argsort(output_of_label)]
        return (
            f"put the names into the order of the model's outputs: {_snippet({'model': {'class_names': list(names)}})}"
        )
    moved = [label for label in np.unique(images.labels) if output_of_label[label] != label]
    pairs = ", ".join(f"{label} → {output_of_label[label]}" for label in moved[:20])
    return f"number the labels as the model's outputs are: {pairs}{', …' if len(moved) > 20 else ''}"


# --- preprocessing ---


def question_preprocessing(
    model: nn.Module, images: LabelledImages, preprocessing: Preprocessing, logits: Tensor, standing: Standing
) -> Doubt | None:
    """Whether the model would answer better, fed another way: scale and normalisation, then colour, then size."""
    order = np.random.default_rng(0).permutation(standing.n)
    num_tried = min(NUM_TRIED, standing.n // 2)
    tried, measured = order[:num_tried], order[num_tried : num_tried + NUM_MEASURED]
    right = logits.argmax(1).numpy() == images.labels
    best, best_words, best_right = preprocessing, list[str](), right[tried]
    for alternatives, num_inputs in STAGES:
        if best_right.mean() >= RIGHT_ENOUGH:
            break
        rows, best_right = tried[:num_inputs], best_right[:num_inputs]
        found = [
            (words, alternative, answered)
            for words, alternative in alternatives(images, best)
            if (answered := _right(model, images.subset(rows), alternative)) is not None
        ]
        words, alternative, answered = max(found, key=lambda item: item[2].mean(), default=("", best, best_right))
        if answered.mean() > best_right.mean() + KEPT_GAIN:
            best, best_words, best_right = alternative, [*best_words, words], answered
    then = _right(model, images.subset(measured), best) if best_words else None
    if then is None or not _gains(right[measured], then):
        return None
    detail = (
        f"the original's accuracy on {images.name} is {right[measured].mean():.1%}, and would be {then.mean():.1%} "
        f"with {' and '.join(best_words)} ({len(measured)} inputs the choice was not made on)"
    )
    sure = standing.is_at_chance and _low(then) >= standing.chance + SURE_ABOVE_CHANCE
    asked = _snippet({"preprocessing": best.model_dump(mode="json", exclude_defaults=True)})
    return Doubt(DataWarning("preprocessing_mismatch", detail, f"set what the model was trained with: {asked}"), sure)


def _normalisations(images: LabelledImages, now: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    channels = 1 if now.color == "grey" else 3 if now.color in ("rgb", "bgr") else images.images.shape[3]
    full_scale = _full_scale(images)
    if full_scale is None:
        return
    is_bytes = images.images.dtype == np.uint8
    for words, wanted, mean, std in INPUTS.get(channels, ()):
        if is_bytes:
            changed: dict[str, Any] = {"scale": "0-255" if wanted == 255 else "0-1"}
            changed |= {"mean": mean and list(mean), "std": std and list(std)}
        else:  # floats are never rescaled, but a mean and std do what a scale would
            unit = full_scale / wanted
            means, stds = mean or (0.0,) * channels, std or (1.0,) * channels
            changed = {"mean": [value * unit for value in means], "std": [value * unit for value in stds]}
        yield words, now.model_copy(update=changed)


def _full_scale(images: LabelledImages) -> float | None:
    """The white of the stored pixels; None where they are normalised already."""
    some = images.images[:NUM_TRIED]
    if images.images.dtype == np.uint8:
        return 255.0
    return None if some.min() < -0.01 else 255.0 if some.max() > 1.5 else 1.0


def _colors(images: LabelledImages, now: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    if images.images.shape[3] == 3 and now.color in ("rgb", "bgr"):
        other = "bgr" if now.color == "rgb" else "rgb"
        yield f"the colours in the order {other.upper()}", now.model_copy(update={"color": other})


def _sizes(images: LabelledImages, now: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    size = now.resize or list(images.images.shape[1:3])
    for side in SIDES:
        if [side, side] != size and side <= MAX_GROWTH * min(size):
            yield f"images of {side}×{side}", now.model_copy(update={"resize": [side, side]})


STAGES = ((_normalisations, NUM_TRIED), (_colors, NUM_TRIED), (_sizes, NUM_TRIED_OTHER_SIZE))


def _right(model: nn.Module, images: LabelledImages, preprocessing: Preprocessing) -> np.ndarray | None:
    """Which inputs are answered right; None where the model cannot be fed so."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    try:
        resolved = resolve_preprocessing(preprocessing, images)
        answers = predict(model, images, resolved, batch_size=BATCH_SIZE, device=device).argmax(1).numpy()
    except DatasetError:
        return None
    return np.asarray(answers == images.labels)


def _gains(now: np.ndarray, then: np.ndarray) -> bool:
    fixed, broken = int((then & ~now).sum()), int((now & ~then).sum())
    certain, _ = paired_difference_interval(fixed, broken, len(now), confidence=CONFIDENCE)
    return bool((fixed - broken) / len(now) >= GAIN and certain >= CERTAIN_GAIN)


def _low(right: np.ndarray) -> float:
    return wilson_interval(int(right.sum()), len(right), confidence=CONFIDENCE)[0]


def _snippet(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, ensure_ascii=False)

"""What a candidate may break is what the gate can still be shown to allow."""

from types import SimpleNamespace

import pytest
import torch

from archrepair_core.arena import (
    KNOWN_BREAK_LESS,
    LIMIT_SHARE,
    MAX_RATIO,
    SMALLEST_SHARE,
    TYPICAL_COUNT,
    UNPROVABLE_SHARE,
    allowed_to_break,
    endangered_classes,
    provable_share,
)
from archrepair_core.augmentation import Augmentation
from archrepair_core.case import Baseline, Case
from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.recognition import Recognition, match_views
from archrepair_core.statistics import wilson_interval


@pytest.mark.parametrize(("limit", "num_inputs"), [(0.02, 5000), (0.02, 1000), (0.005, 4000), (0.005, 100_000)])
def test_what_may_be_broken_just_passes_the_gate(limit, num_inputs):
    broken = int(provable_share(limit, num_inputs) * num_inputs)
    assert wilson_interval(broken, num_inputs)[1] <= limit < wilson_interval(broken + 2, num_inputs)[1]


def test_small_sets_leave_room_for_a_repair():
    assert provable_share(0.02, 200) == pytest.approx(SMALLEST_SHARE * 0.02)
    assert provable_share(0.02, 50) == provable_share(0.02, 0) == pytest.approx(UNPROVABLE_SHARE * 0.02)


def test_a_limit_of_nothing_allows_nothing():
    assert provable_share(0.0, 1000) == 0.0


def test_a_class_named_too_often_is_kept_more():
    """Of 90 inputs, 30 in each class, class 0 is named 60 times and class 1 never."""
    labels = torch.arange(90) % 3
    named = torch.where(labels == 1, 0, labels)
    kept = endangered_classes(torch.nn.functional.one_hot(named, 4).float(), labels)
    ratio = (60 + TYPICAL_COUNT) / (30 + TYPICAL_COUNT)
    assert kept.tolist() == pytest.approx([ratio**2, 1.0, 1.0, 1.0])
    everything_named_0 = endangered_classes(
        torch.nn.functional.one_hot(torch.zeros(900, dtype=int), 9).float(), torch.arange(900) % 9
    )
    assert everything_named_0[0] == MAX_RATIO**2


@pytest.mark.parametrize(
    ("repair", "validation", "little"),
    [
        (0, None, False), (1, None, True), (4, None, True), (5, None, False), (10, None, False),
        (1, 9, True), (9, 1, False), (0, 0, False), (0, 4, True), (0, 5, False),
        ("unlabelled", 4, True), ("unlabelled", 5, False), ("unlabelled", "unlabelled", False),
    ],
)  # fmt: skip
def test_little_works_where_less_than_half_does_but_something(repair, validation, little):
    """Right answers of ten each; where repair shows only failures, or no labels, validation tells."""
    rights = {"repair": repair, "validation": validation}
    logits = {role: answers(right) for role, right in rights.items() if isinstance(right, int)}
    splits = {role: None if right is None else ten_of_class_0(role, right) for role, right in rights.items()}
    case = Case(None, None, SimpleNamespace(splits=SimpleNamespace(**splits)), Baseline(logits, 1.0, None))
    assert case.little_works is little


@pytest.mark.parametrize(
    ("repair", "validation", "given", "known_alone"),
    [
        (0, 3, False, True), (0, 3, True, False), (0, 0, False, False), (0, None, False, False),
        (1, 3, False, False), ("unlabelled", 3, False, False),
    ],
)  # fmt: skip
def test_where_known_images_alone_tell_what_breaks_less_of_them_may(repair, validation, given, known_alone):
    """Beside failures, of which none can break; a validation set that was given is the field."""
    rights = {"repair": repair, "validation": validation}
    logits = {role: answers(right) for role, right in rights.items() if isinstance(right, int)}
    splits = {role: None if right is None else ten_of_class_0(role, right) for role, right in rights.items()}
    data = SimpleNamespace(splits=SimpleNamespace(**splits, present=lambda: {"test": range(3000)}))
    spec = SimpleNamespace(
        gates=["test.broken_rate <= 0.02"], datasets=SimpleNamespace(validation="upload:validation" if given else None)
    )
    allowed = LIMIT_SHARE * provable_share(0.02, 3000)
    found = allowed_to_break(Case(spec, None, data, Baseline(logits, 1.0, None)))
    assert found == pytest.approx(allowed / KNOWN_BREAK_LESS if known_alone else allowed)


@pytest.mark.parametrize(("num_right", "fits", "plain"), [(3, True, 24), (8, True, 4), (3, False, 0)])
def test_where_little_works_most_of_what_is_replayed_is_plain(num_right, fits, plain):
    found = Recognition("fog", 3.0, fits, 1.0, 9.0, 1.0, (), {}, 30, 255.0)
    views = {"repair": AUGMENTATIONS["flip"], "replay": match_views(found, AUGMENTATIONS["flip"])}
    splits = SimpleNamespace(repair=ten_of_class_0("repair", num_right), validation=None)
    baseline = Baseline({"repair": answers(num_right)}, 1.0, Augmentation("match", views, found))
    case = Case(None, None, SimpleNamespace(splits=splits), baseline)
    assert [view.change for view in case.views["replay"]].count(None) == plain
    assert case.views["repair"] == views["repair"]


def ten_of_class_0(role, right):
    return SimpleNamespace(name=role, labelled=right != "unlabelled", labels=torch.zeros(10, dtype=torch.long).numpy())


def answers(num_right):
    return torch.nn.functional.one_hot(torch.tensor([0] * num_right + [1] * (10 - num_right)), 2).float()

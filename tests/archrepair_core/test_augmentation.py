"""What recognising the corruption changes about the data: more of the field is there to choose by."""

import numpy as np
import pytest

from archrepair_core import augmentation
from archrepair_core.augmentation import FIELD_VALIDATION_SHARE, with_matched_validation
from archrepair_core.data.images import NO_LABEL, ImageRows, LabelledImages
from archrepair_core.data.split import Splits
from archrepair_core.recognition import Recognition

PIXELS = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
DIGESTS = np.array([f"sample {row}".encode() for row in range(400)])


def images(name, rows, *, labelled=True):
    rows = np.asarray(rows)
    labels = rows % 4 if labelled else np.full(len(rows), NO_LABEL)
    return LabelledImages(name, ImageRows(PIXELS, rows), labels, "", DIGESTS[rows], "test")


def splits(**changes):
    parts = {"repair": images("repair", range(64)), "validation": images("validation", range(64, 80)),
             "test": images("test", range(100, 140)), "replay": images("replay", range(200, 400)),
             "regression": None, "guard": None}  # fmt: skip
    return Splits(**(parts | changes), notes=())


def recognised(*, fits=True):
    return Recognition("jpeg_compression", 75.0, fits, 1.0, 9.0, 1.0, (), {}, 30, 255.0)


def validated(before, tmp_path, *, fits=True, was_cut=True, failures=False):
    return with_matched_validation(
        before,
        recognised(fits=fits),
        was_cut=was_cut,
        shows_only_failures=lambda: failures,
        work_dir=tmp_path,
        seed=0,
    )


def test_half_of_the_labelled_field_validates_where_known_images_are_replayed(tmp_path):
    before = splits()
    after = validated(before, tmp_path)
    assert len(after.validation) == len(after.repair) == FIELD_VALIDATION_SHARE * 80
    assert set(after.validation.images.rows) | set(after.repair.images.rows) == set(range(80))
    assert (after.validation.labels == after.validation.images.rows % 4).all()
    assert after.replay is before.replay
    assert "24 more samples of repair are validation" in after.notes[-1]


def test_failures_teach_and_replayed_images_validate(tmp_path):
    """Among failures nobody sees what a repair breaks."""
    before = splits()
    after = validated(before, tmp_path, failures=True)
    assert set(after.repair.images.rows) == set(range(80))
    assert len(after.validation) == 32  # of 200 known ones, eight a class
    assert len(after.replay) == 168
    assert "validation is 32 replay samples through the recognised jpeg_compression" in after.notes[-1]


@pytest.mark.parametrize(
    "replay", [images("replay", range(200, 400), labelled=False), images("replay", range(200, 208))]
)
def test_failures_validate_where_replayed_images_cannot(tmp_path, replay):
    """Without labels they tell nothing, and of two a class none can be spared."""
    after = validated(splits(replay=replay), tmp_path, failures=True)
    assert after.validation.labelled
    assert set(after.validation.images.rows) <= set(range(80))


def test_more_than_a_few_failures_teach_nothing_beside_replayed_images(tmp_path, monkeypatch):
    monkeypatch.setattr(augmentation, "MAX_FAILURES", 20)
    after = validated(splits(), tmp_path, failures=True)
    assert len(after.repair) == 20
    assert set(after.repair.labels) == set(range(4))
    assert "60 of 80 failures teach nothing, because known images are replayed" in after.notes


def test_what_validates_is_not_replayed(tmp_path):
    """The first 50 rows of repair are known images too."""
    after = validated(splits(replay=images("replay", [*range(50), *range(200, 300)])), tmp_path)
    assert not set(after.replay.images.rows) & set(after.validation.images.rows)
    assert set(range(200, 300)) <= set(after.replay.images.rows)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"fits": False}),
        ({}, {"was_cut": False}),
        ({}, {"was_cut": False, "failures": True}),
        ({"replay": None}, {}),
        ({"validation": None}, {}),
    ],
)
def test_nothing_is_moved_without_replay_or_a_cut_of_our_own(tmp_path, changes, options):
    before = splits(**changes)
    assert validated(before, tmp_path, **options) is before


def test_without_field_labels_replayed_images_validate(tmp_path):
    after = validated(splits(repair=images("repair", range(80), labelled=False), validation=None), tmp_path)
    assert len(after.repair) == 80
    assert len(after.validation) + len(after.replay) == 200
    assert after.validation.labelled

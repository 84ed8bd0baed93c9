from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archrepair_core.data.images import DIGEST_DTYPE, labelled_images, sample_digest
from archrepair_core.data.split import (
    MIXES_REPLAY,
    NEEDS_REPLAY,
    check_labels,
    find_leaks,
    prepare_splits,
    stratified_split,
)
from archrepair_core.errors import DatasetError, SpecError
from archrepair_core.spec import RepairSpec


def images(values, labels=None, dtype=np.uint8):
    """One 1×1 image per value: equal values are equal samples."""
    values = np.asarray(values)
    pixels = values.astype(dtype).reshape(-1, 1, 1, 1)
    digests = np.array([sample_digest(image) for image in pixels], DIGEST_DTYPE)
    labels = values % 4 if labels is None else np.asarray(labels)
    return labelled_images(pixels, labels.astype(np.int64), digests, name="any", source="upload:any")


def spec(**datasets):
    return RepairSpec.model_validate({"datasets": {"repair": "upload:repair", **datasets}})


def values_of(dataset):
    return set(dataset.images[:].ravel().tolist())


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9)
)
def test_a_split_is_a_partition_with_every_larger_class_on_both_sides(labels, fraction, seed):
    labels = np.array(labels)
    kept, held = stratified_split(labels, fraction=fraction, seed=seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        n_held = int((labels[held] == label).sum())
        assert (1 <= n_held <= count - 1) if count > 1 else n_held == 0
        assert abs(n_held - fraction * count) < 1.01 or count == 1


def test_a_split_depends_on_the_seed_and_on_nothing_else():
    labels = np.arange(100) % 5
    again = [stratified_split(labels, fraction=0.3, seed=seed)[1].tolist() for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    assert len(again[0]) == 30


def test_absent_test_and_validation_are_cut_from_repair_and_noted():
    splits = prepare_splits({"repair": images(range(200))}, spec(), seed=3)
    sizes = {role: len(dataset) for role, dataset in splits.present().items()}
    assert sizes == {"repair": 112, "validation": 28, "test": 60}
    parts = [values_of(dataset) for dataset in splits.present().values()]
    assert len(set.union(*parts)) == 200
    assert splits.notes == (
        "test was cut from repair: 60 samples, stratified by label, seed 3",
        "validation was cut from repair: 28 samples, stratified by label, seed 3",
    )
    assert splits.test.name == "test"
    assert np.bincount(splits.test.labels).tolist() == [15] * 4


def test_given_sets_are_used_as_they_are():
    given_sets = {"repair": images(range(40)), "validation": images(range(50, 60)), "test": images(range(100, 140)),
                  "replay": images(range(150, 160))}  # fmt: skip
    splits = prepare_splits(given_sets, spec(), seed=0)
    assert {role: dataset.digest for role, dataset in splits.present().items()} == {
        role: dataset.digest for role, dataset in given_sets.items()
    }
    assert splits.notes == ()


def test_a_part_of_regression_guards_the_choice_and_the_rest_is_measured():
    sets = {"repair": images(range(40)), "regression": images(range(200, 220))}
    splits = prepare_splits(sets, spec(), seed=0)
    assert (len(splits.guard), len(splits.regression)) == (8, 12)  # two a class
    assert values_of(splits.guard) | values_of(splits.regression) == set(range(200, 220))
    assert splits.present()["guard"].name == "guard"
    assert any("8 of 20 samples of regression guard the choice" in note for note in splits.notes)


def unlabelled(values):
    return images(values, labels=[-1] * len(values))


def job(**fields):
    return RepairSpec.model_validate({"datasets": {"repair": "upload:repair"}, **fields})


@pytest.mark.parametrize("method", ["auto", "bn", "align"])
def test_repair_without_labels_gives_an_unlabelled_validation_to_the_methods_that_need_none(method):
    sets = {"repair": unlabelled(range(30)), "test": images(range(60, 80))}
    splits = prepare_splits(sets, job(repair={"method": method}), seed=0)
    assert (len(splits.repair), len(splits.validation)) == (24, 6)
    assert not splits.validation.labelled
    assert "repair has no labels" in splits.notes


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"repair": {"method": "weights"}}, "repair.method 'weights' needs them"),
        ({"kind": "localize", "localization": {"method": "gradient"}}, "localization.method 'gradient' needs them"),
    ],
)
def test_a_method_that_needs_labels_says_so(fields, said):
    with pytest.raises(DatasetError, match=said) as caught:
        prepare_splits({"repair": unlabelled(range(30)), "test": images(range(60, 80))}, job(**fields), seed=0)
    assert caught.value.code == "dataset.labels_missing"
    assert "auto" in caught.value.hint


@pytest.mark.parametrize("method", NEEDS_REPLAY)
def test_a_method_that_learns_from_known_images_says_so(method):
    with pytest.raises(SpecError, match=f"'{method}' learns from images of the training data") as caught:
        prepare_splits({"repair": images(range(30))}, job(repair={"method": method}), seed=0)
    assert caught.value.code == "spec.replay_missing"
    assert "sensei" in caught.value.hint
    assert method not in caught.value.hint
    assert prepare_splits({"repair": images(range(30))}, job(kind="localize", repair={"method": method}), seed=0)


@pytest.mark.parametrize("method", NEEDS_REPLAY)
def test_images_of_other_channels_cannot_be_mixed(method):
    grey, colour = images(range(30)), images(range(40, 60))
    pixels = np.repeat(colour.images[:], 3, axis=3)
    colour = labelled_images(pixels, colour.labels, colour.sample_digests, name="any", source="upload:any")
    refused = method in MIXES_REPLAY
    with pytest.raises(DatasetError, match="repair has 1 channels, replay 3") if refused else nullcontext() as caught:
        prepare_splits({"repair": grey, "replay": colour}, job(repair={"method": method}), seed=0)
    assert not refused or caught.value.code == "dataset.mixed_channels"


@pytest.mark.parametrize("role", ["test", "validation", "replay", "regression"])
def test_only_repair_may_come_without_labels(role):
    sets = {"repair": unlabelled(range(30)), "test": images(range(60, 80)), role: unlabelled(range(90, 99))}
    with pytest.raises(DatasetError, match=f"{role} has no labels") as caught:
        prepare_splits(sets, job(), seed=0)
    assert caught.value.code == "dataset.labels_missing"


def test_a_test_set_cannot_be_cut_from_unlabelled_repair():
    with pytest.raises(DatasetError, match="no test set for the verdict") as caught:
        prepare_splits({"repair": unlabelled(range(30))}, job(), seed=0)
    assert "labelled test set" in caught.value.hint


def test_an_unlabelled_localization_keeps_every_image():
    splits = prepare_splits({"repair": unlabelled(range(30))}, job(kind="localize"), seed=0)
    assert {role: len(dataset) for role, dataset in splits.present().items()} == {"repair": 30}


def test_a_labelled_localization_keeps_some_to_choose_on_and_measures_nothing():
    splits = prepare_splits({"repair": images(range(40))}, job(kind="localize"), seed=0)
    assert {role: len(dataset) for role, dataset in splits.present().items()} == {"repair": 32, "validation": 8}


@pytest.mark.parametrize("role", ["repair", "validation", "replay"])
def test_a_sample_learned_from_that_is_in_a_given_test_is_an_error(role):
    sets = {"repair": images(range(40)), "validation": images(range(50, 60)), "replay": images(range(60, 70))}
    sets["test"] = images([100, int(sets[role].images[3][0, 0, 0]), 101])
    with pytest.raises(DatasetError, match=f"1 of .* samples of {role} stand in test too.* row 3") as caught:
        prepare_splits(sets, spec(), seed=0)
    assert caught.value.code == "dataset.leak"


def test_a_leak_that_the_spec_accepts_is_noted():
    sets = {"repair": images(range(40)), "test": images(range(35, 60))}
    splits = prepare_splits(sets, spec(allow_leak=True), seed=0)
    assert "5 samples of repair stand in test too; allow_leak accepted them" in splits.notes
    assert len(splits.repair) + len(splits.validation) == 40


def test_copies_of_a_sample_never_stand_on_both_sides_of_a_cut():
    splits = prepare_splits({"repair": images(list(range(60)) * 2), "replay": images(range(60))}, spec(), seed=0)
    learned = values_of(splits.repair) | values_of(splits.validation) | values_of(splits.replay)
    assert not values_of(splits.test) & learned
    assert not values_of(splits.validation) & (values_of(splits.repair) | values_of(splits.replay))
    assert any("of repair that stand in test too were left out" in note for note in splits.notes)


def test_repair_gives_way_to_a_given_validation():
    splits = prepare_splits(
        {"repair": images(range(40)), "validation": images(range(36, 50)), "test": images(range(60, 80))},
        spec(),
        seed=0,
    )
    assert values_of(splits.repair) == set(range(36))
    assert splits.notes == ("4 samples of repair that stand in validation too were left out of it",)


def test_validation_may_not_be_all_of_repair():
    sets = {"repair": images(range(40)), "validation": images(range(40)), "test": images(range(60, 80))}
    with pytest.raises(DatasetError, match="40 of 40 samples of repair stand in validation"):
        prepare_splits(sets, spec(), seed=0)


def test_learning_from_the_regression_set_is_noted():
    sets = {"repair": images(range(40)), "test": images(range(60, 80)), "replay": images(range(100, 120)),
            "regression": images(range(110, 130))}  # fmt: skip
    assert any(
        "10 samples of regression stand in replay too" in note for note in prepare_splits(sets, spec(), seed=0).notes
    )


def test_too_few_samples_to_cut_from_is_an_error():
    with pytest.raises(DatasetError, match="test cannot be cut from the 3 samples") as caught:
        prepare_splits({"repair": images([0, 1, 2])}, spec(), seed=0)
    assert caught.value.code == "dataset.too_few_samples"


def test_bytes_beside_floats_need_an_explicit_scale():
    sets = {"repair": images(range(40)), "test": images(range(60, 80), dtype=np.float32)}
    with pytest.raises(DatasetError, match="repair uint8, test float32"):
        prepare_splits(sets, spec(), seed=0)
    explicit = spec().model_copy(update={"preprocessing": spec().preprocessing.model_copy(update={"scale": "0-255"})})
    assert len(prepare_splits(sets, explicit, seed=0).test) == 20


def test_sets_of_different_sizes_need_a_resize():
    wide = images(range(60, 80))
    wide = replace(wide, images=replace(wide.images, pixels=np.repeat(wide.images.pixels, 2, axis=2)))
    sets = {"repair": images(range(40)), "test": wide}
    with pytest.raises(DatasetError, match="repair 1×1, test 1×2") as caught:
        prepare_splits(sets, spec(), seed=0)
    assert caught.value.code == "dataset.mixed_sizes"
    resized = RepairSpec.model_validate({"datasets": {"repair": "upload:x"}, "preprocessing": {"resize": [2, 2]}})
    assert len(prepare_splits(sets, resized, seed=0).test) == 20


def test_leaks_are_found_by_pixels():
    assert find_leaks(images([5, 6, 7, 5]), images([9, 5])).tolist() == [0, 3]


def test_a_label_without_an_output_names_its_row_in_the_source():
    labels = [0, 1] * 20
    labels[12] = 37
    splits = prepare_splits({"repair": images(range(40), labels), "test": images(range(60, 80))}, spec(), seed=0)
    with pytest.raises(DatasetError) as caught:
        check_labels(splits.present(), 10)
    assert caught.value.detail == "label 37 in repair row 12, but the model has 10 outputs"
    check_labels(splits.present(), 38)


def test_copies_of_one_image_leave_nothing_to_learn_from():
    with pytest.raises(DatasetError, match="copies of samples in test") as caught:
        prepare_splits({"repair": images([7] * 20)}, spec(), seed=0)
    assert caught.value.code == "dataset.too_few_samples"


def test_as_many_names_as_outputs():
    named = replace(images([100, 101]), class_names=("cat", "dog", "mouse"))
    splits = prepare_splits(
        {"repair": replace(images(range(40)), class_names=None), "test": named}, spec(test="upload:t"), seed=0
    )
    with pytest.raises(DatasetError, match="are 3 names, but the model has 4 outputs"):
        check_labels(splits.present(), 4)
    check_labels({"test": replace(named, class_names=("a", "b", "c", "d"))}, 4)

"""MODE chooses inputs of the class that fails, by what the class is recognised by where it is answered right."""

import numpy as np
import pytest

from archrepair_core.errors import ArchRepairError
from archrepair_core.repairers.mode import (
    BATCH_SIZE,
    Probe,
    Seen,
    buggy_classes,
    chosen_items,
    differential_map,
    look_at_pool,
    select_inputs,
    select_layer,
)
from tests.archrepair_core.repairers.arenas import DAMAGED_NEURON, accuracy, arena_of, damaged_net, quadrants, soon


def seen_of(labels, answers, known, **layers):
    return Seen(layers, np.array(answers), np.array(labels), np.array(known, dtype=bool), np.arange(len(labels)))


def test_a_class_that_only_new_inputs_fail_on_is_over_fitted():
    """Class 0 always right; class 1 wrong on both; class 2 right on known and wrong on new inputs."""
    labels = [0, 1, 2] * 4
    known = [False] * 6 + [True] * 6
    answers = [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    assert buggy_classes(seen_of(labels, answers, known)) == {1: "under-fitted", 2: "over-fitted"}


def test_the_map_is_what_right_inputs_have_and_mistaken_ones_lack():
    features = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0], [1.0, 1.0]])
    probe = Probe("layer", features, np.array([[1.0, 1.0], [-1.0, 2.0]]), np.array([0, 1]), 1.0)
    seen = seen_of([0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1])
    # Right: mean (3, 0). Of the class and missed: (0, 6). Taken for the class: (1, 1).
    assert differential_map(probe, seen, 0).tolist() == [3 - 0.5, 0 - 3.5]
    assert differential_map(probe, seen, 7).tolist() == [0, 0]


def test_the_first_layer_behind_which_nothing_gets_better_is_chosen():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise, signal = rng.normal(size=(200, 3)), labels[:, None] * 4.0 + rng.normal(size=(200, 1))
    known = np.arange(200) % 4 < 2
    seen = seen_of(labels, labels, known, stem=noise, middle=signal, last=np.concatenate([signal, noise], 1))
    assert select_layer(seen).layer == "middle"


def test_channels_are_averaged_over_positions(tmp_path):
    seen = look_at_pool(arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 20, seed=3)))
    assert {name: each.shape for name, each in seen.layers.items()} == {"1": (80, 4), "3": (80, 4)}
    assert seen.known_N.sum() == 20
    assert seen.right_N[seen.labels_N != DAMAGED_NEURON].all()


def test_known_images_of_one_class_are_refused(tmp_path):
    known = quadrants("replay", 20, seed=3).subset(np.arange(0, 20, 4))
    with pytest.raises(ArchRepairError, match="holds class 0 alone") as error:
        look_at_pool(arena_of(damaged_net(), tmp_path, replay=known))
    assert error.value.code == "dataset.too_few_classes"


def test_half_of_what_is_chosen_is_of_the_class_that_fails(tmp_path):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 80, seed=3))
    items = chosen_items(arena)
    labels = np.concatenate([np.arange(60) % 4, np.arange(80) % 4])[items]
    assert list(items) == sorted(items)
    # Half of its 35 inputs, and as many drawn from all.
    assert len(items) == 36
    assert (labels == DAMAGED_NEURON).sum() >= 18


@pytest.mark.parametrize("level", ["auto", "network"])
def test_the_damaged_network_is_trained_on_them(tmp_path, level):
    told, net = [], damaged_net()
    arena = arena_of(net, tmp_path, told=told, limits={"distillation": 0}, replay=quadrants("replay", 80, seed=3))
    (trial,) = select_inputs(arena, [], level=level, deadline=soon(), epochs=60)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trial.model, test) > accuracy(net, test) + 0.1
    assert any(f"class {DAMAGED_NEURON} is under-fitted" in message for message in told)


def test_where_time_is_over_a_part_of_the_pool_is_chosen_from(tmp_path):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 400, seed=3))
    seen = look_at_pool(arena, until=soon(-1))
    assert len(seen.places_N) == BATCH_SIZE < 460
    assert list(seen.places_N) == sorted(set(seen.places_N.tolist()))
    assert (seen.known_N == (seen.places_N >= 60)).all()
    assert (seen.labels_N == np.concatenate([np.arange(60) % 4, np.arange(400) % 4])[seen.places_N]).all()
    assert set(chosen_items(arena, looked=soon(-1)).tolist()) <= set(seen.places_N.tolist())


def test_where_time_is_over_no_further_layer_is_probed():
    rng = np.random.default_rng(0)
    labels, known = np.arange(200) % 2, np.arange(200) % 4 < 2
    seen = seen_of(labels, labels, known, stem=rng.normal(size=(200, 3)), last=labels[:, None] * 4.0)
    assert select_layer(seen).layer == "last"
    assert select_layer(seen, over=lambda: True).layer == "stem"

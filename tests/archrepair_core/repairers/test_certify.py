"""The smallest change of the last layer, and a certificate that holds for a program that knows nothing of ours."""

import importlib.util
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.certificate import Points, gamma, points_at, prove, write_certificate
from archrepair_core.checkpoint import open_checkpoints
from archrepair_core.errors import ArchRepairError
from archrepair_core.repairers import certify
from archrepair_core.repairers.certify import MARGIN, Head, doubling, find_head, repair_last_layer, smallest_change
from tests.archrepair_core.repairers.arenas import PREPROCESSING, accuracy, arena_of, damaged_net, quadrants, soon

CHECKER = Path(__file__).parents[3] / "examples" / "certificate" / "check.py"


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location("check", CHECKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def points_of(features, labels):
    count = len(labels)
    return Points(
        "head", np.array(features, np.float32), np.array(labels), np.zeros(count, "S16"), np.zeros(count, bool)
    )


def test_the_smallest_change_of_one_point_is_the_one_by_hand():
    """z = (2, 0) for h = (2): with w0 down and w1 up by t and both biases by t each, the lead falls by 6t; 2 + margin
    must go."""
    head = Head(np.array([[1.0], [0.0]]), np.zeros(2), has_bias=True)
    changed = smallest_change(head, points_of([[2.0]], [1]), must=np.array([0]), keep=np.array([], int), seconds=10)
    t = (2 + MARGIN) / 6
    assert np.abs(changed.weight_KD - head.weight_KD).max() == pytest.approx(t, rel=1e-4)
    z = changed.weight_KD @ [2.0] + changed.bias_K
    assert z[1] - z[0] == pytest.approx(MARGIN, rel=1e-4)


def test_a_layer_without_bias_gets_none():
    head = Head(np.array([[1.0], [0.0]]), np.zeros(2), has_bias=False)
    changed = smallest_change(head, points_of([[2.0]], [1]), must=np.array([0]), keep=np.array([], int), seconds=10)
    assert changed.bias_K.tolist() == [0, 0]
    assert (changed.weight_KD @ [2.0])[1] > (changed.weight_KD @ [2.0])[0]


def test_named_points_are_right_and_passing_ones_stay_so_where_that_can_be():
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(60, 12)), rng.normal(size=(5, 12))
    logits = features @ weight.T
    labels = logits.argmax(1)
    labels[:6] = np.argsort(logits[:6], axis=1)[:, -2]
    head = Head(weight, np.zeros(5), has_bias=True)
    changed = smallest_change(head, points_of(features, labels), must=np.arange(6), keep=np.arange(6, 60), seconds=30)
    after = features.astype(np.float32).astype(float) @ changed.weight_KD.T + changed.bias_K
    lead = after[np.arange(60), labels] - np.where(np.arange(5) == labels[:, None], -np.inf, after).max(1)
    assert (lead[:6] > MARGIN * 0.999).all()
    assert (lead[6:] > 0).mean() > 0.9


def test_what_cannot_be_right_at_once_has_no_solution():
    head = Head(np.eye(2), np.zeros(2), has_bias=True)
    same = points_of([[1.0, 1.0], [1.0, 1.0]], [0, 1])
    assert smallest_change(head, same, must=np.array([0, 1]), keep=np.array([], int), seconds=10) is None


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_the_number_of_named_inputs_doubles(count, sizes):
    assert doubling(count) == sizes


def test_a_model_that_ends_in_no_linear_layer_is_refused(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)).eval()
    with pytest.raises(ArchRepairError) as error:
        find_head(net, arena_of(net, tmp_path))
    assert error.value.code == "model.no_linear_head"


def test_failing_inputs_are_mended_within_the_limits(tmp_path):
    told, net = [], damaged_net()
    arena = arena_of(net, tmp_path, told=told)
    trials = repair_last_layer(arena, [], level="auto", deadline=soon(), epochs=None)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trials[0].model, test) > accuracy(net, test) + 0.15
    assert trials[0].alpha == 1.0
    assert sorted(trial.alpha for trial in trials)[0] == 0.0
    assert trials[0].certifies.failed_P.any()
    changed = {
        name for name, value in net.state_dict().items() if not torch.equal(value, trials[0].model.state_dict()[name])
    }
    assert changed == {"3.weight", "3.bias"}
    assert any("makes 15 of 15 failing inputs right" in message for message in told)


def test_a_program_that_an_earlier_attempt_solved_is_not_solved_again(tmp_path, monkeypatch):
    asked = []

    def counted(*args, must, **options):
        asked.append(len(must))
        return smallest_change(*args, must=must, **options)

    monkeypatch.setattr(certify, "smallest_change", counted)

    def repaired():
        checkpoints = open_checkpoints(tmp_path / "checkpoints")
        arena = replace(arena_of(damaged_net(), tmp_path), checkpoints=checkpoints)
        return checkpoints, repair_last_layer(arena, [], level="auto", deadline=soon(), epochs=None)

    _, first = repaired()
    assert asked == doubling(15)
    checkpoints, second = repaired()
    assert asked == doubling(15), "nothing was solved twice"
    assert checkpoints.spent_before > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.model[3].weight, other.model[3].weight)


def test_where_nothing_may_break_the_original_stands_first(tmp_path):
    arena = replace(arena_of(damaged_net(), tmp_path), max_broken=-1.0)
    trials = repair_last_layer(arena, [], level="auto", deadline=soon(), epochs=None)
    assert trials[0].alpha == 0.0
    assert trials[0].score.utility == pytest.approx(0.0, abs=1e-4)


def test_bounds_hold_for_every_order_of_a_float32_sum():
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(4, 50)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    points = points_of(rng.normal(size=(20, 50)), rng.integers(0, 4, 20))
    sure = prove(weight, bias, points).margin_P
    for _ in range(20):
        order = rng.permutation(50)
        logits = np.zeros((20, 4), np.float32) + bias
        for column in order:
            logits = logits + points.features_PD[:, [column]] * weight[:, column]
        own = logits[np.arange(20), points.labels_P]
        rivals = np.where(np.arange(4) == points.labels_P[:, None], -np.inf, logits).max(1)
        assert (own.astype(float) - rivals > sure).all()
    exactly = np.vectorize(lambda value: Fraction(float(value)), otypes=[object])
    logits = exactly(points.features_PD) @ exactly(weight).T + exactly(bias)
    exact = [
        row[y] - max(value for k, value in enumerate(row) if k != y)
        for row, y in zip(logits.tolist(), points.labels_P.tolist(), strict=True)
    ]
    assert all(float(bound) < margin for bound, margin in zip(sure, exact, strict=True))
    slack = 2.1 * gamma(51, 2.0**-24) * (np.abs(points.features_PD) @ np.abs(weight).T + np.abs(bias)).max()
    assert all(float(margin) - bound < slack for bound, margin in zip(sure, exact, strict=True))


@pytest.fixture
def certificate(tmp_path):
    net = damaged_net()
    points = points_at(net, "3", quadrants("repair", 24, seed=1), PREPROCESSING, torch.device("cpu"))
    path = tmp_path / "certificate.npz"
    assert write_certificate(path, net, points, seed=7) == 18, "the six of the damaged class are not right"
    with np.load(path, allow_pickle=False) as file:
        return path, {name: file[name] for name in file.files}


def test_a_program_of_its_own_agrees(certificate, checker, tmp_path):
    path, arrays = certificate
    assert checker.check(str(path)) == []
    meta = json.loads(str(arrays["meta"]))
    assert (meta["layer"], meta["certified"], meta["certified_failed"], meta["asked_failed"]) == ("3", 18, 0, 6)
    assert (arrays["radius"] > 0).all()
    net = damaged_net()
    torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, 8, 8)), str(tmp_path / "model.pt"))
    assert checker.check(str(path), str(tmp_path / "model.pt")) == []
    with torch.no_grad():
        net[3].weight[0, 0] += 1e-6
    torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, 8, 8)), str(tmp_path / "model.pt"))
    assert checker.check(str(path), str(tmp_path / "model.pt")) == ["3 of the model is not the certified one"]


TAMPERED = {
    "a label": ("labels", lambda value: np.concatenate([[(value[0] + 1) % 4], value[1:]])),
    "a weight": ("weight", lambda value: value + np.float32(1e-3) * (np.arange(4) == 0)),
    "a feature": ("features", lambda value: np.concatenate([-value[:1], value[1:]])),
    "a margin": ("margin", lambda value: value * 1.001),
    "a point more": ("labels", lambda value: np.concatenate([value, value[:1]])),
    "other numbers": ("features", lambda value: value.astype(np.float64)),
    "a NaN": ("features", lambda value: np.where(np.arange(len(value))[:, None] == 0, np.float32(np.nan), value)),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_certificate_is_refused(certificate, checker, what, tmp_path):
    _, arrays = certificate
    name, change = TAMPERED[what]
    path = tmp_path / "tampered.npz"
    np.savez(path, **(arrays | {name: change(arrays[name])}))
    assert checker.check(str(path)) != []

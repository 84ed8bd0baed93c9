"""Choosing on validation: scores against hand counts, and the walk from the original towards the repaired model."""

import pytest
import torch
from torch import nn

from archrepair_core import selection
from archrepair_core.features import Features
from archrepair_core.scope import NETWORK, scoped_state
from archrepair_core.search.branches import BlockWithBranch, Branch
from archrepair_core.selection import (
    REQUIRED_FALL,
    DivergenceScore,
    Guard,
    ValidationScore,
    choose_alpha_,
    choose_alpha_by_divergence_,
    expected_broken,
    interpolate_,
    score_logits,
)
from tests.archrepair_core.given_rows import GivenRows


def logits(answers, *, classes=3, margin=4.0):
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).float() * margin


def test_score_counts_fixed_and_broken():
    labels = torch.tensor([0, 1, 2, 0])
    score = score_logits(logits([0, 1, 0, 0]), logits([0, 0, 2, 1]), labels)  # 2 fixed, 1 broken
    assert score.accuracy == 0.75
    assert score.change == 0.25
    assert score.broken == 0.25


def test_utility_follows_the_accuracy_and_is_nothing_without_a_change():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    before = logits([0, 1, 2, 1, 2, 0])
    assert score_logits(before, before, labels).utility == pytest.approx(0, abs=1e-6)
    assert score_logits(logits([0, 1, 2, 0, 2, 0]), before, labels).utility > 0.1
    assert score_logits(logits([1, 1, 2, 0, 2, 0]), before, labels).utility == pytest.approx(0, abs=0.01)
    assert score_logits(logits([1, 0, 2, 0, 2, 0]), before, labels).utility < -0.1


def test_the_expected_broken_share_varies_less_than_the_counted_one_around_the_same_mean():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(3000, generator=generator) * 4 + 4
    after = before + 0.2 + 0.6 * torch.randn(3000, generator=generator)
    truth = float(((before > 0) & (after <= 0)).float().mean())
    draws = [torch.randperm(3000, generator=generator)[:200] for _ in range(200)]
    counted = torch.tensor([float(((before[rows] > 0) & (after[rows] <= 0)).float().mean()) for rows in draws])
    expected = torch.tensor([expected_broken(before[rows], after[rows]) for rows in draws])
    assert float(expected.mean()) == pytest.approx(truth, rel=0.15)
    assert float(expected.std()) < 0.75 * float(counted.std())
    # Where margins lie is told by more inputs than were repaired for the comparison.
    wider = torch.tensor(
        [expected_broken(before[rows], after[rows], torch.cat([before[rows], before[:1000]])) for rows in draws]
    )
    assert float(wider.mean()) == pytest.approx(truth, rel=0.15)
    assert float(wider.std()) < 0.9 * float(expected.std())
    assert expected_broken(before, before) == 0
    assert expected_broken(torch.tensor([-1.0, -2.0]), torch.tensor([3.0, -3.0])) == 0, "nothing there to break"


def test_what_breaks_in_the_field_is_told_by_the_margins_there():
    """Training data is answered more safely than the field: its own margins promise too little."""
    generator = torch.Generator().manual_seed(0)
    known, field = (torch.randn(2000, generator=generator) * 3 + mean for mean in (7, 3))
    known_after, field_after = (m + 0.8 * torch.randn(2000, generator=generator) for m in (known, field))
    truth = float(((field > 0) & (field_after <= 0)).float().mean())
    assert expected_broken(known, known_after) < 0.5 * truth
    assert expected_broken(known, known_after, field) == pytest.approx(truth, rel=0.15)


def test_interpolation_is_linear_in_weights_and_statistics_and_copies_counters():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    end = {name: value + 2 if value.is_floating_point() else value + 5 for name, value in start.items()}
    interpolate_(model, start, end, 0.25)
    for name, value in model.state_dict().items():
        expected = start[name] + (0.5 if value.is_floating_point() else 5)
        assert torch.allclose(value, expected), name


def test_a_new_branch_is_walked_by_its_scale_alone():
    model = BlockWithBranch(nn.Linear(3, 3), Branch(nn.Linear(3, 3), (3,)))
    model = nn.Sequential(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    end = {name: value + 1 for name, value in start.items()}
    interpolate_(model, start, end, 0.5)
    state = model.state_dict()
    assert torch.allclose(state["0.branch.scale"], torch.full((3,), 0.5))
    assert torch.equal(state["0.branch.operation.weight"], end["0.branch.operation.weight"])
    assert torch.allclose(state["0.original.weight"], start["0.original.weight"] + 0.5)


def identity_features(inputs, labels, original):
    return Features((GivenRows(inputs[None]),), original, labels)


@pytest.mark.parametrize(
    ("fixed_from", "alpha", "change", "broken"),
    [(1.0, 0.2, 0.4, 0.0), (2.2, 0.15 * 2.04 / 1.21, 0.3, 0.1)],
    ids=["the best is inside the limit", "the best is at the limit"],
)
def test_alpha_stops_before_it_breaks_more_than_allowed(fixed_from, alpha, change, broken, monkeypatch):
    """Rows 0–3 fail until the bias of class 1 passes `fixed_from`; rows 4–9 break one by one as it grows further.

    Broken shares are 0, 0, .1, .2, .3, .5, .6 along the walk: slope 1.21 / 2.04, which meets 0.15 at α = 0.253.
    """
    monkeypatch.setattr(selection, "MIN_NEIGHBOURS", 1)
    monkeypatch.setattr(selection, "NEIGHBOUR_SHARE", 0)  # then what is expected is what is counted
    inputs = torch.zeros(10, 10).fill_diagonal_(1)
    labels = torch.tensor([1] * 4 + [0] * 6)
    model = nn.Linear(10, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, :4] = fixed_from
        model.weight[0, 4:] = torch.tensor([2.5, 3.5, 4.5, 5.5, 6.5, 7.5])
        model.bias.zero_()
    original = model(inputs).detach()
    start = {name: value.clone() for name, value in scoped_state(model, NETWORK).items()}
    with torch.no_grad():
        model.bias[1] = 10.0
    chosen, score = choose_alpha_(
        model, model, identity_features(inputs, labels, original), scope=NETWORK, start=start, max_broken=0.15
    )
    assert chosen == pytest.approx(alpha)
    assert (score.change, score.broken) == (pytest.approx(change), pytest.approx(broken))
    assert score.expected_broken == pytest.approx(alpha * 1.21 / 2.04)
    assert model.bias[1].item() == pytest.approx(10 * alpha)


def test_the_guard_stops_the_walk_at_what_it_may_lose():
    """Growing the bias fixes validation from α = 0.6 on, and breaks half of the guard from α = 0.25 on; of two inputs
    that is within a standard error of nothing."""
    model = nn.Linear(4, 2)
    inputs = torch.zeros(4, 4).fill_diagonal_(1)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0] = torch.tensor([6.0, 6.0, 2.5, 20.0])
        model.bias.zero_()
    original = model(inputs).detach()
    start = {name: value.clone() for name, value in scoped_state(model, NETWORK).items()}
    with torch.no_grad():
        model.bias[1] = 10.0
    validation = identity_features(inputs[:2], torch.tensor([1, 1]), original[:2])
    many = torch.tensor([2, 3]).repeat(40)
    guarded = identity_features(inputs[many], torch.zeros(80, dtype=torch.long), original[many])
    options = {"scope": NETWORK, "start": start, "max_broken": 1.0}

    for guard in (Guard(guarded, max_broken=0.15), Guard(guarded, max_lost=0.15)):
        alpha, _ = choose_alpha_(model, model, validation, guard=guard, **options)
        assert alpha < 0.25
        assert (model(inputs[2:]).argmax(1) == 0).all()
        with torch.no_grad():
            model.bias[1] = 10.0

    pair = identity_features(inputs[2:], torch.tensor([0, 0]), original[2:])
    alpha, _ = choose_alpha_(model, model, validation, guard=Guard(pair, max_lost=0.15), **options)
    assert alpha >= 0.6
    with torch.no_grad():
        model.bias[1] = 10.0

    # Of this guard one is fixed before one is broken: nothing is lost on balance.
    even = identity_features(inputs[[2, 0]], torch.tensor([1, 0]), original[[2, 0]])
    alpha, _ = choose_alpha_(model, model, validation, guard=Guard(even, max_lost=0.15), **options)
    assert alpha >= 0.6

    with torch.no_grad():
        model.bias[1] = 10.0
    alpha, _ = choose_alpha_(model, model, validation, **options)
    assert alpha >= 0.7
    assert model(inputs).argmax(1).tolist() == [1, 1, 1, 0]


def test_a_gain_within_chance_is_none_and_of_inputs_that_all_failed_any_gain_is_one():
    """Two of sixteen are fixed and one is broken; and two that failed before are a little nearer on balance."""
    labels = torch.zeros(16, dtype=torch.long)
    before = logits([0] * 8 + [1] * 8)
    mixed = score_logits(logits([1] + [0] * 9 + [1] * 6), before, labels)
    assert 0 < mixed.utility < mixed.standard_error
    assert not mixed.helps
    assert score_logits(logits([0] * 12 + [1] * 4), before, labels).helps
    changes = {"broken": 0.0, "smooth_change_N": torch.tensor([0.2, -0.1]), "expected_broken": 0.0}
    assert ValidationScore(accuracy=0.0, change=0.0, **changes).helps
    assert not ValidationScore(accuracy=0.5, change=0.0, **changes).helps


def test_to_fail_more_surely_is_no_loss_where_everything_fails():
    labels = torch.zeros(4, dtype=torch.long)
    before = torch.tensor([[0.0, margin] for margin in (0.5, 2.0, 3.0, 4.0)])
    after = torch.tensor([[0.2, 0.0], [0.0, 2.2], [0.0, 3.2], [0.0, 4.2]])
    assert score_logits(after, before, labels).smooth_change_N.tolist() == [pytest.approx(0.7, abs=0.2), 0.0, 0.0, 0.0]
    worked = [torch.cat([logits, torch.tensor([[9.0, 0.0]])]) for logits in (after, before)]
    assert float(score_logits(*worked, torch.zeros(5, dtype=torch.long)).smooth_change_N.min()) < 0


class Dented(nn.Module):
    """Inputs are rows of three: the margin of class 0, what the walk adds to it, and how far it dents it half-way."""

    def __init__(self):
        super().__init__()
        self.gone = nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs):
        margin, rise, dent = inputs.T
        margin = margin + self.gone * rise - 4 * self.gone * (1 - self.gone) * dent
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_an_answer_that_goes_and_comes_back_does_not_end_the_walk():
    model = Dented()
    start = {"gone": torch.tensor(0.0)}
    failing = torch.tensor([[-1.0, 2.5, 0.0], [-2.0, 3.5, 0.0]])
    works = torch.tensor([[0.2, 0.0, 0.25], *([float(margin), 0.0, 0.0] for margin in range(2, 11))])
    labels = torch.zeros(12, dtype=torch.long)
    original = model(torch.cat([failing, works])).detach()
    validation = identity_features(failing, labels[:2], original[:2])
    guard = Guard(identity_features(works, labels[2:], original[2:]), max_lost=0.06)
    with torch.no_grad():
        model.gone.fill_(0.5)
        assert (model(works).argmax(1) == 1).sum() == 1  # a tenth of the guard, by counting
        model.gone.fill_(1.0)

    alpha, score = choose_alpha_(
        model, model, validation, scope=NETWORK, start=start, max_broken=1.0, guard=guard, from_original=True
    )
    assert (alpha, score.accuracy) == (1.0, 1.0)


def test_without_labels_the_walk_ends_where_the_divergence_is_smallest():
    model = nn.Linear(1, 1, bias=False)
    start = {"weight": torch.zeros(1, 1)}
    with torch.no_grad():
        model.weight.fill_(10.0)
    alpha, score = choose_alpha_by_divergence_(
        model, lambda: abs(model.weight.item() - 4.2), scope=NETWORK, start=start
    )
    assert (alpha, model.weight.item()) == (0.4, 4.0)
    assert score.before == pytest.approx(4.2)
    assert score.utility == pytest.approx(1 - 0.2 / 4.2 - REQUIRED_FALL)
    assert score.clearly_beats(DivergenceScore(4.2, 0.4))
    assert not score.clearly_beats(DivergenceScore(4.2, 0.21))
    assert not DivergenceScore(0.5, 0.47).helps

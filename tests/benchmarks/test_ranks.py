"""Rank tests against a published example and against counting."""

import numpy as np
import pytest
from scipy.stats import chi2

from archrepair_core.statistics import mcnemar_exact
from benchmarks.ranks import compare, compare_with_all, pareto_front, rank_methods

# Demšar 2006, table 6: AUC of C4.5 and three variants on fourteen sets.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_the_example_of_the_paper_comes_out_as_printed():
    ranking = rank_methods(DEMSAR)
    assert ranking.mean_ranks_M == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert ranking.critical_difference == pytest.approx(1.25, abs=5e-3)
    # The paper's χ² of 9.28 on three degrees of freedom, corrected for ties: one of four values, three of two.
    assert ranking.friedman_p == pytest.approx(chi2.sf(9.28 / (1 - (60 + 3 * 6) / (14 * 60)), 3), abs=2e-4)


def test_too_little_is_not_ranked():
    with pytest.raises(ValueError, match="1 cases × 4 methods"):
        rank_methods(DEMSAR[:1])


def test_a_pair_is_compared_on_the_inputs_they_disagree_on():
    ours = np.array([True] * 70 + [False] * 30)
    other = np.array([True] * 50 + [False] * 45 + [True] * 5)
    found = compare(ours, other)
    assert found.difference == pytest.approx(0.15)
    assert found.p == mcnemar_exact(20, 5)
    low, high = found.interval
    assert 0.04 < low < 0.15 < high < 0.26
    assert compare(ours, ours) == compare(ours, ours)
    assert compare(ours, ours).p == 1.0


def test_many_comparisons_are_corrected():
    ours = np.array([True] * 70 + [False] * 30)
    other = np.array([True] * 50 + [False] * 45 + [True] * 5)
    found = compare_with_all(ours, {"one": other, "another": ours})
    assert found["one"].p == pytest.approx(2 * mcnemar_exact(20, 5))


def test_what_nothing_beats_is_on_the_front():
    points = {"best gain": (5, -2), "careful": (1, 0), "beaten": (4, -2), "twin": (5, -2), "worst": (-1, -3)}
    assert pareto_front(points) == ["best gain", "careful", "twin"]

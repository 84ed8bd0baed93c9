"""Every formula against counts done by hand."""

import numpy as np
import pytest

from archrepair_core.localize.suspiciousness import FORMULAS, Spectrum, count_spectrum

# Three channels over 4 failing and 6 passing inputs: active mostly when failing, always, never.
SPECTRUM = Spectrum(
    n_failed_active=np.array([3.0, 4.0, 0.0]),
    n_passed_active=np.array([1.0, 6.0, 0.0]),
    n_failed_inactive=np.array([1.0, 0.0, 4.0]),
    n_passed_inactive=np.array([5.0, 0.0, 6.0]),
)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("tarantula", [(3 / 4) / (3 / 4 + 1 / 6), 0.5, 0.0]),
        ("ochiai", [3 / np.sqrt(4 * 4), 4 / np.sqrt(4 * 10), 0.0]),
        ("dstar2", [9 / 2, 16 / 6, 0.0]),
        ("dstar3", [27 / 2, 64 / 6, 0.0]),
        ("barinel", [1 - 1 / 4, 1 - 6 / 10, 0.0]),
        ("op2", [3 - 1 / 7, 4 - 6 / 7, 0.0]),
    ],
)
def test_formula_agrees_with_hand_counts(formula, expected):
    assert FORMULAS[formula](SPECTRUM) == pytest.approx(expected)


def test_counts_are_those_of_the_activity_matrix_under_each_weighting():
    active = np.array([[True, False], [True, True], [False, True], [False, False], [True, False]])
    failed = np.array([True, True, True, False, False])
    spectrum = count_spectrum(active, failed, np.array([[1, 1, 1, 1, 1], [3, 0, 0, 0, 2]], dtype=np.float32))
    assert spectrum.n_failed_active.tolist() == [[2, 2], [3, 0]]
    assert spectrum.n_passed_active.tolist() == [[1, 0], [2, 0]]
    assert spectrum.n_failed_inactive.tolist() == [[1, 1], [0, 3]]
    assert spectrum.n_passed_inactive.tolist() == [[1, 2], [0, 2]]


def test_a_channel_active_in_every_failing_and_no_passing_input_is_the_most_suspicious_and_finite():
    perfect = Spectrum(np.array([4.0, 3.0]), np.array([0.0, 0.0]), np.array([0.0, 1.0]), np.array([6.0, 6.0]))
    for formula in FORMULAS.values():
        scores = formula(perfect)
        assert np.isfinite(scores).all()
        assert scores[0] >= scores[1]

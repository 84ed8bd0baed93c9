import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multinomial, norm

from archrepair_core.statistics import holm, mcnemar_exact, paired_difference_interval, wilson_interval, worsening_p


def test_mcnemar_counts_the_tails_of_a_fair_coin():
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_exact(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7)


@pytest.mark.parametrize("n", [0, 1, 4, 1000])
def test_as_many_fixed_as_broken_is_no_evidence(n):
    assert mcnemar_exact(n, n) == 1.0


def test_mcnemar_of_large_counts_agrees_with_the_normal_approximation():
    assert mcnemar_exact(5200, 4800) == pytest.approx(2 * norm.sf((400 - 1) / math.sqrt(10000)), rel=0.01)


def test_worsening_is_one_sided():
    p = worsening_p(np.array([0, 7, 1, 0]), np.array([0, 1, 7, 3]))
    assert p == pytest.approx([1.0, 1 - 1 / 2**8, (1 + 8) / 2**8, 1 / 2**3])


def test_wilson_agrees_with_newcombes_published_example():
    # Newcombe, Statistics in Medicine 17 (1998) 857–872, table I.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_of_nothing_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_paired_interval_agrees_with_the_published_example():
    # Fagerland, Lydersen and Laake (2014): 1 and 7 discordant of 21 pairs, Tango's interval -0.517 to -0.026.
    assert paired_difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_the_paired_interval_without_discordant_pairs_is_wilsons_on_either_side():
    upper = wilson_interval(0, 50)[1]
    assert paired_difference_interval(0, 0, 50) == pytest.approx((-upper, upper))


@pytest.mark.parametrize(("fixed", "broken", "n"), [(0, 0, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (9, 0, 9), (0, 9, 9)])
def test_the_paired_interval_is_defined_at_every_edge(fixed, broken, n):
    low, high = paired_difference_interval(fixed, broken, n)
    assert -1 <= low < high <= 1


counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 400)).map(lambda c: (c[0], c[1], sum(c)))


@settings(deadline=None)
@given(counts)
def test_the_paired_interval_is_symmetric_and_holds_the_estimate(count):
    fixed, broken, n = count
    low, high = paired_difference_interval(fixed, broken, n)
    assert low - 1e-9 <= (fixed - broken) / n <= high + 1e-9
    mirrored = paired_difference_interval(broken, fixed, n)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(counts)
def test_the_ends_of_the_paired_interval_are_where_the_score_test_begins_to_reject(count):
    fixed, broken, n = count

    def score(delta):
        """The same statistic with the nuisance probability found by maximising the likelihood, not by formula."""

        def minus_log_likelihood(p):
            terms = [(fixed, p + delta), (broken, p), (n - fixed - broken, 1 - 2 * p - delta)]
            return -sum(k * math.log(max(q, 1e-300)) for k, q in terms if k)

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        p = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return (fixed - broken - n * delta) / math.sqrt(n * (2 * p + delta - delta**2))

    low, high = paired_difference_interval(fixed, broken, n)
    assert score(low) == pytest.approx(norm.ppf(0.975), rel=1e-3)
    assert score(high) == pytest.approx(-norm.ppf(0.975), rel=1e-3)


@pytest.mark.parametrize(("p_fixed", "p_broken"), [(0.05, 0.02), (0.15, 0.05), (0.3, 0.1)])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(p_fixed, p_broken):
    n = 80
    covered = 0.0
    for fixed in range(31 + int(p_fixed * n)):
        for broken in range(21 + int(p_broken * n)):
            if fixed + broken <= n:
                probability = multinomial.pmf(
                    [fixed, broken, n - fixed - broken], n, [p_fixed, p_broken, 1 - p_fixed - p_broken]
                )
                low, high = paired_difference_interval(fixed, broken, n) if probability > 1e-7 else (0.0, 0.0)
                covered += probability * (low <= p_fixed - p_broken <= high)
    assert 0.935 < covered < 0.97


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(100, 400))
def test_the_paired_interval_excludes_zero_when_the_asymptotic_mcnemar_test_rejects(fixed, broken, still):
    low, high = paired_difference_interval(fixed, broken, fixed + broken + still)
    z = (fixed - broken) / math.sqrt(fixed + broken)
    if abs(abs(z) - norm.ppf(0.975)) > 1e-6:
        assert (low > 0 or high < 0) == (abs(z) > norm.ppf(0.975))


def test_holm_agrees_with_a_hand_count():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_keeps_the_order_and_never_falls_below_the_p_value(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_rejects_at_most_one_true_hypothesis_in_twenty_runs():
    random = np.random.default_rng(0)
    broken = binom.rvs(40, 0.5, size=(400, 10), random_state=random)
    p_values = worsening_p(40 - broken, broken)
    assert np.mean([min(holm(row.tolist())) < 0.05 for row in p_values]) <= 0.05

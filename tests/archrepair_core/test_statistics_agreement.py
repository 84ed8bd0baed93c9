"""Our statistics against SciPy's and statsmodels' on a thousand random tables each, a third of them with zeros."""

import gc

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, fisher_exact, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from archrepair_core.robustness import corruption_error
from archrepair_core.statistics import (
    below_rest_p,
    holm,
    mcnemar_exact,
    mean_below_zero_p,
    mean_interval,
    paired_difference_interval,
    wilson_interval,
    worsening_p,
)

NUM_TABLES = 1000


def random_tables():
    """Counts of (still right, fixed, broken, still wrong), from single inputs to some ten thousand."""
    rng = np.random.default_rng(0)
    tables = (10 ** rng.uniform(0, 4, (NUM_TABLES, 4))).astype(int)
    tables[rng.random((NUM_TABLES, 4)) < 0.1] = 0
    tables[:16] = [[(cell >> place) & 1 for place in range(4)] for cell in range(16)]
    return tables.tolist()


TABLES = random_tables()


def test_the_tables_have_zeros_where_they_matter():
    assert min(sum(not cell for cell in column) for column in zip(*TABLES, strict=True)) > 50
    assert TABLES[0] == [0, 0, 0, 0]


def test_mcnemar_is_that_of_statsmodels():
    ours = [mcnemar_exact(fixed, broken) for _, fixed, broken, _ in TABLES]
    theirs = [
        float(mcnemar([[right, broken], [fixed, wrong]], exact=True).pvalue) if fixed + broken else 1.0
        for right, fixed, broken, wrong in TABLES
    ]
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-300)


def test_worsening_is_the_one_sided_sign_test_of_scipy():
    _, fixed, broken, _ = np.array(TABLES).T
    theirs = [binomtest(b, f + b, 0.5, alternative="greater").pvalue if f + b else 1.0 for _, f, b, _ in TABLES]
    assert worsening_p(fixed, broken) == pytest.approx(theirs, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_that_of_statsmodels(confidence):
    counted = [(right + fixed, sum(table)) for table in TABLES if sum(table) for right, fixed, *_ in [table]]
    ours = np.array([wilson_interval(successes, n, confidence=confidence) for successes, n in counted])
    theirs = proportion_confint(*np.array(counted).T, alpha=1 - confidence, method="wilson")
    np.testing.assert_allclose(ours, np.stack(theirs, axis=1), rtol=1e-9, atol=1e-12)


def test_below_the_rest_is_the_fisher_test_of_scipy():
    ours = [
        below_rest_p(right, right + wrong, all_right=right + rest_right, all_n=right + wrong + rest_right + rest_wrong)
        for right, wrong, rest_right, rest_wrong in TABLES
    ]
    theirs = [
        fisher_exact([[right, wrong], [rest_right, rest_wrong]], alternative="less").pvalue
        for right, wrong, rest_right, rest_wrong in TABLES
    ]
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_holm_is_that_of_statsmodels(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels' function does at each call, for a fifth of a second
    rng = np.random.default_rng(1)
    for _ in range(NUM_TABLES):
        p_values = rng.random(rng.integers(1, 40)) ** rng.integers(1, 12)
        p_values[rng.random(len(p_values)) < 0.1] = rng.choice([0.0, 1.0])
        p_values[: len(p_values) // 4] = p_values[-1]  # ties
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)


@pytest.mark.slow
def test_means_are_those_of_students_test():
    rng = np.random.default_rng(2)
    for _ in range(NUM_TABLES):
        values = rng.normal(rng.normal(0, 0.3), rng.uniform(0.1, 2), rng.integers(2, 60))
        ours = mean_interval(values, limits=(-np.inf, np.inf))
        assert ours == pytest.approx(DescrStatsW(values).tconfint_mean(), rel=1e-9)
        assert mean_below_zero_p(values) == pytest.approx(ttest_1samp(values, 0, alternative="less").pvalue, rel=1e-9)


def test_the_paired_interval_excludes_no_change_where_the_asymptotic_test_of_statsmodels_rejects():
    decided = 0
    for right, fixed, broken, wrong in TABLES:
        if fixed + broken == 0:
            continue
        theirs = mcnemar([[right, broken], [fixed, wrong]], exact=False, correction=False).pvalue
        low, high = paired_difference_interval(fixed, broken, right + fixed + broken + wrong)
        if abs(theirs - 0.05) > 1e-6:
            assert (low > 0 or high < 0) == (theirs < 0.05), (right, fixed, broken, wrong)
            decided += 1
    assert decided > 0.9 * NUM_TABLES


def test_the_paired_interval_is_that_of_the_bootstrap_within_its_error():
    """Where there is enough to resample; the ends of a bootstrap of 2,000 are uncertain to about 4 % of its width."""
    enough = [table for table in TABLES if min(table[1:3]) > 30 and sum(table) < 3000][:8]
    assert len(enough) == 8
    for right, fixed, broken, wrong in enough:
        changes = np.repeat([0, 1, -1, 0], [right, fixed, broken, wrong])
        theirs = bootstrap((changes,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
        ours = paired_difference_interval(fixed, broken, len(changes))
        assert ours == pytest.approx(theirs, abs=0.08 * (theirs.high - theirs.low))


def test_the_mean_corruption_error_has_the_interval_of_the_bootstrap_within_its_error():
    rng = np.random.default_rng(3)
    difficulty = rng.random((400, 1))
    before = rng.binomial(5, np.clip(difficulty + rng.normal(0, 0.1, (400, 6)), 0, 1)).astype(np.uint8)
    after = rng.binomial(before, 0.8).astype(np.uint8)
    _, ours = corruption_error(before, after)

    drawn = bootstrap(
        (np.arange(400),),
        lambda rows: (after[rows].sum(0) / before[rows].sum(0)).mean(),
        vectorized=False, n_resamples=2000, method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
    assert ours["ci95"] == pytest.approx(drawn, abs=0.08 * (drawn.high - drawn.low))

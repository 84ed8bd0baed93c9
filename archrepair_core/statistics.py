"""Paired statistics of two classifiers on the same inputs: what was fixed against what was broken.

SciPy where it has the method. It has neither Holm's adjustment (statsmodels has: a heavy dependency for a short
formula) nor Tango's interval (neither of them has), so those two are here. Tests compare with both.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, hypergeom, norm, t


def mcnemar_exact(fixed: int, broken: int) -> float:
    """Exact two-sided McNemar p-value: could as many fixes and breaks come from a fair coin? 1.0 without either."""
    if fixed + broken == 0:
        return 1.0
    return float(binomtest(broken, fixed + broken, 0.5).pvalue)


def worsening_p(fixed: np.ndarray, broken: np.ndarray) -> np.ndarray:
    """Exact one-sided McNemar p-values, elementwise, that small where more was broken than fixed."""
    return np.asarray(binom.sf(np.asarray(broken) - 1, np.asarray(fixed) + np.asarray(broken), 0.5))


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) when there was nothing to count."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference_interval(fixed: int, broken: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of (fixed − broken) / n, the change in accuracy on the same n inputs.

    Tango, Statistics in Medicine 17 (1998) 891–908; recommended by Fagerland, Lydersen and Laake, ibid. 33 (2014)
    2850–2875. It excludes 0 exactly when the asymptotic McNemar test rejects.
    """
    if n == 0:
        return -1.0, 1.0
    z = float(norm.ppf(0.5 + confidence / 2))
    estimate = (fixed - broken) / n

    def above(delta: float) -> float:
        return _tango_score(fixed, broken, n=n, delta=delta) + z

    def below(delta: float) -> float:
        return _tango_score(fixed, broken, n=n, delta=delta) - z

    low = -1.0 if broken == n else float(brentq(below, -1.0, estimate))
    high = 1.0 if fixed == n else float(brentq(above, estimate, 1.0))
    return low, high


def mean_interval(values: np.ndarray, *, limits: tuple[float, float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent values, cut to the `limits` they lie within; these below two."""
    n = len(values)
    if n < 2:
        return limits
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    reach = float(t.ppf(0.5 + confidence / 2, n - 1)) * error
    return max(limits[0], mean - reach), min(limits[1], mean + reach)


def mean_below_zero_p(values: np.ndarray) -> float:
    """One-sided p-value of Student's test, that small where the mean of independent values is below zero."""
    n = len(values)
    mean = float(values.mean()) if n else 0.0
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error == 0:
        return 0.0 if mean < 0 and n > 1 else 1.0
    return float(t.cdf(mean / error, n - 1))


def below_rest_p(right: int, n: int, *, all_right: int, all_n: int) -> float:
    """Fisher's exact one-sided p-value, that small where fewer of a part's n are right than of all the rest."""
    if all_n == 0:
        return 1.0
    return float(hypergeom.cdf(right, all_n, all_right, n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given (Scandinavian Journal of Statistics 6 (1979) 65–70)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    scaled = np.asarray(p_values, dtype=float)[order] * (len(p_values) - np.arange(len(p_values)))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(p_values) else scaled
    return [float(p) for p in adjusted]


def _tango_score(fixed: int, broken: int, *, n: int, delta: float) -> float:
    """Score statistic of H0: P(fixed) − P(broken) = delta, with P(broken) at its maximum likelihood under H0."""
    # The likelihood's derivative, multiplied out: 2n·p² + linear·p − broken·delta·(1 − delta) = 0.
    linear = (2 * n - fixed + broken) * delta - fixed - broken
    root = math.sqrt(max(linear**2 + 8 * n * broken * delta * (1 - delta), 0.0))
    p_broken = max((root - linear) / (4 * n), -delta, 0.0)
    gap = fixed - broken - n * delta
    variance = n * (2 * p_broken + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)

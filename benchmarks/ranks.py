"""Whether one method is better than another: over cases by ranks, on one case by the same test inputs.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006): Friedman's test over mean
ranks, then Nemenyi's critical difference. Legend: C cases, M methods, N test inputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from archrepair_core.statistics import holm, mcnemar_exact

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of M methods over C cases, 1 the best; two differ significantly by `critical_difference` or more."""

    mean_ranks_M: Floats
    friedman_p: float
    critical_difference: float


@dataclass(frozen=True)
class Comparison:
    """One method less another on the same inputs: difference of accuracy with its interval, and McNemar's p-value."""

    difference: float
    interval: tuple[float, float]
    p: float


def rank_methods(accuracy_CM: Floats, *, significance: float = 0.05) -> Ranking:
    """Ranks within each case, ties averaged. Raises ValueError for fewer than two cases or three methods."""
    num_cases, num_methods = accuracy_CM.shape
    if num_cases < 2 or num_methods < 3:
        raise ValueError(f"{num_cases} cases × {num_methods} methods are too few to rank; 2 × 3 are the least")
    # What float arithmetic makes of equal accuracies is no difference.
    ranks_CM = rankdata(-accuracy_CM.round(9), axis=1)
    p = float(friedmanchisquare(*accuracy_CM.round(9).T).pvalue)
    q = float(studentized_range.ppf(1 - significance, num_methods, math.inf)) / math.sqrt(2)
    return Ranking(ranks_CM.mean(0), p, q * math.sqrt(num_methods * (num_methods + 1) / (6 * num_cases)))


def compare(right_N: Bools, other_N: Bools, *, seed: int = 0) -> Comparison:
    """Exact McNemar test, and the percentile bootstrap over inputs."""
    change_N = right_N.astype(np.float64) - other_N.astype(np.float64)
    gained, lost = int((change_N > 0).sum()), int((change_N < 0).sum())
    # Inputs on which both agree add nothing: a resample is a draw of the two counts.
    probabilities = [gained / len(change_N), lost / len(change_N), 1 - (gained + lost) / len(change_N)]
    counts = np.random.default_rng(seed).multinomial(len(change_N), probabilities, size=NUM_RESAMPLES)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / len(change_N), [0.025, 0.975])
    return Comparison(float(change_N.mean()), (float(low), float(high)), mcnemar_exact(gained, lost))


def compare_with_all(of: Bools, others: Mapping[str, Bools]) -> dict[str, Comparison]:
    """One method with every other, p-values by Holm over them."""
    found = {name: compare(of, other) for name, other in others.items()}
    adjusted = holm([comparison.p for comparison in found.values()])
    return {
        name: Comparison(each.difference, each.interval, p)
        for (name, each), p in zip(found.items(), adjusted, strict=True)
    }


def pareto_front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Those that no other point beats: at least as large on every axis, and larger on one."""

    def beaten(name: str) -> bool:
        own = points[name]
        return any(
            all(a >= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own)
            for other in points.values()
        )

    return [name for name in points if not beaten(name)]

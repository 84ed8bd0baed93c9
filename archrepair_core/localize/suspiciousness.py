"""Suspiciousness formulas over a spectrum: how much a neuron's activity goes with failing.

Shapes: every array is [B, C] (or [C]): one entry per channel, one row per weighting of the inputs. Formulas as
surveyed by Wong et al., "A Survey on Software Fault Localization", TSE 2016, Table 2; Op2 from Naish et al., "A Model
for Spectra-based Software Diagnosis", TOSEM 2011.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Hit counts per channel: how many failing and passing inputs left it active or inactive."""

    n_failed_active: Scores
    n_passed_active: Scores
    n_failed_inactive: Scores
    n_passed_inactive: Scores


def count_spectrum(
    active_IC: npt.NDArray[np.bool_], failed_I: npt.NDArray[np.bool_], weights_BI: npt.NDArray[np.float32] | None = None
) -> Spectrum:
    """Count activity over inputs I for channels C; each row of `weights_BI` says how often every input counts."""
    weights_BI = np.ones((1, len(failed_I)), dtype=np.float32) if weights_BI is None else weights_BI
    active = active_IC.astype(np.float32)
    failed, passed = weights_BI[:, failed_I], weights_BI[:, ~failed_I]
    n_failed_active = (failed @ active[failed_I]).astype(np.float64)
    n_passed_active = (passed @ active[~failed_I]).astype(np.float64)
    return Spectrum(
        n_failed_active,
        n_passed_active,
        failed.sum(1, keepdims=True) - n_failed_active,
        passed.sum(1, keepdims=True) - n_passed_active,
    )


def tarantula(s: Spectrum) -> Scores:
    """Failing rate over failing plus passing rate, in [0, 1]."""
    failed = _ratio(s.n_failed_active, s.n_failed_active + s.n_failed_inactive)
    passed = _ratio(s.n_passed_active, s.n_passed_active + s.n_passed_inactive)
    return _ratio(failed, failed + passed)


def ochiai(s: Spectrum) -> Scores:
    """Cosine between being active and failing, in [0, 1]."""
    n_failed = s.n_failed_active + s.n_failed_inactive
    return _ratio(s.n_failed_active, np.sqrt(n_failed * (s.n_failed_active + s.n_passed_active)))


def dstar(s: Spectrum, *, exponent: int) -> Scores:
    """D*: n_failed_active^exponent / (n_passed_active + n_failed_inactive), unbounded; Wong et al., TR 2014."""
    return _ratio(s.n_failed_active**exponent, s.n_passed_active + s.n_failed_inactive)


def barinel(s: Spectrum) -> Scores:
    """One minus the share of passing inputs among those that left it active, in [0, 1]; 0 where never active."""
    active = s.n_failed_active + s.n_passed_active
    return np.where(active > 0, 1 - _ratio(s.n_passed_active, active), 0.0)


def op2(s: Spectrum) -> Scores:
    """n_failed_active − n_passed_active / (n_passed + 1), unbounded."""
    return s.n_failed_active - s.n_passed_active / (s.n_passed_active + s.n_passed_inactive + 1)


FORMULAS: dict[str, Callable[[Spectrum], Scores]] = {
    "tarantula": tarantula,
    "ochiai": ochiai,
    "dstar2": lambda s: dstar(s, exponent=2),
    "dstar3": lambda s: dstar(s, exponent=3),
    "barinel": barinel,
    "op2": op2,
}


def _ratio(numerator: Scores, denominator: Scores) -> Scores:
    # A D* denominator of zero means active in every failing and no passing input: as suspicious as can be, but finite.
    perfect = (denominator == 0) & (numerator > 0)
    quotient = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
    return np.where(perfect, numerator * 1e6, quotient)

"""A repair observes as many inputs as its time allows; a localization alone observes what it needs."""

import math
from types import SimpleNamespace

import pytest

from archrepair_core.localize.localize import MAX_POOL, MIN_POOL, OBSERVING_SHARE, inputs_until
from archrepair_core.processes import clock


@pytest.mark.parametrize(
    ("kind", "method", "seconds", "expected"),
    [
        ("repair", "auto", 100.0, 250),
        ("repair", "auto", 200.0, 500),
        ("repair", "archrepair", 100.0, 250 / OBSERVING_SHARE),
        ("repair", "auto", 1e6, MAX_POOL),
        ("repair", "auto", math.inf, MAX_POOL),
        ("repair", "auto", 0.0, MIN_POOL),
        ("repair", "archrepair", -5.0, MIN_POOL),
        ("localize", "auto", 0.0, MAX_POOL),
    ],
)
def test_what_is_observed_fits_the_time_there_is(kind, method, seconds, expected):
    """With 4 PGD steps an input of each pool and its twin cost 2·5 passes there and back, or 30 forward ones."""
    forwards_per_second = 30 * 2.5 / OBSERVING_SHARE
    found = inputs_until(job(kind, method, forwards_per_second), arena(), clock() + seconds)
    assert found == pytest.approx(expected, rel=0.02)


def test_an_earlier_attempt_has_decided():
    assert inputs_until(job("repair", "auto", 1e9), arena(decided=0.0), clock() + 100) == MIN_POOL


def job(kind, method, inputs_per_second):
    attacked = SimpleNamespace(adversarial=SimpleNamespace(steps=4))
    spec = SimpleNamespace(kind=kind, localization=attacked, repair=SimpleNamespace(method=method))
    return SimpleNamespace(spec=spec, baseline=SimpleNamespace(inputs_per_second=inputs_per_second))


def arena(decided=None):
    return SimpleNamespace(decide=lambda value: value if decided is None else decided)

"""What a candidate may break is what the gate can still be shown to allow."""

import pytest

from archrepair_core.arena import SMALLEST_SHARE, UNPROVABLE_SHARE, provable_share
from archrepair_core.statistics import wilson_interval


@pytest.mark.parametrize(("limit", "num_inputs"), [(0.02, 5000), (0.02, 1000), (0.005, 4000), (0.005, 100_000)])
def test_what_may_be_broken_just_passes_the_gate(limit, num_inputs):
    broken = int(provable_share(limit, num_inputs) * num_inputs)
    assert wilson_interval(broken, num_inputs)[1] <= limit < wilson_interval(broken + 2, num_inputs)[1]


def test_small_sets_leave_room_for_a_repair():
    assert provable_share(0.02, 200) == pytest.approx(SMALLEST_SHARE * 0.02)
    assert provable_share(0.02, 50) == provable_share(0.02, 0) == pytest.approx(UNPROVABLE_SHARE * 0.02)


def test_a_limit_of_nothing_allows_nothing():
    assert provable_share(0.0, 1000) == 0.0

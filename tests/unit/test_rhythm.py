"""When what is done again and again is done next: on a grid that all share, each at its own place."""

from __future__ import annotations

import pytest

from bus.broker.rhythm import until_next_s

NAMES = [f"agent/pricing/pricing-{number}" for number in range(200)]
NOW_S = 1_790_000_000.123


@pytest.mark.parametrize("every_s", [0.2, 1.0, 3.0, 7.5])
def test_the_next_moment_is_no_later_than_the_time_between_two(every_s: float) -> None:
    for name in NAMES:
        left_s = until_next_s(NOW_S, every_s, name)
        assert 0 < left_s <= every_s * 1.02 + 1e-6
        # From there on it is the whole time, whatever the clock has lost or won on the way.
        assert until_next_s(NOW_S + left_s + 0.001, every_s, name) == pytest.approx(every_s - 0.001, abs=1e-5)
        assert until_next_s(NOW_S + left_s - 0.001, every_s, name) == pytest.approx(every_s + 0.001, abs=1e-5)


def test_many_names_share_few_moments() -> None:
    moments = {round(NOW_S + until_next_s(NOW_S, 1.0, name), 3) for name in NAMES}
    assert 3 <= len(moments) <= 6


def test_what_is_done_every_third_second_meets_what_is_done_every_second() -> None:
    for name in NAMES:
        rare_s = NOW_S + until_next_s(NOW_S, 3.0, name)
        often_s = NOW_S + until_next_s(NOW_S, 1.0, name)
        assert (rare_s - often_s) % 1.0 == pytest.approx(0.0, abs=1e-4) or (rare_s - often_s) % 1.0 == pytest.approx(
            1.0, abs=1e-4
        )

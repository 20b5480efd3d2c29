"""Health: worse at once, better one step at a time, and only when it has been better for a while."""

from __future__ import annotations

from bus.registry.health import Health, Vitals, examined

LATE, VERY_LATE, WELL = Vitals(0.6), Vitals(2.5), Vitals(0.01)


def after(*looks: Vitals) -> Health:
    health = Health()
    for each in looks:
        health = examined(health, each)
    return health


def test_a_late_event_loop_lets_others_go_first_and_a_very_late_one_takes_nothing() -> None:
    assert [after(each).rank(standby=False) for each in (WELL, LATE, VERY_LATE)] == [0, 5, None]
    assert "0.6 s late" in after(LATE).why


def test_it_gets_better_one_step_at_a_time() -> None:
    levels = [after(VERY_LATE, *[WELL] * looks).level for looks in range(7)]
    assert levels == ["unwell"] * 3 + ["degraded"] * 3 + ["healthy"]
    assert after(VERY_LATE, *[WELL] * 6).why == ""


def test_one_bad_look_in_between_begins_the_wait_anew() -> None:
    assert after(LATE, WELL, WELL, LATE, WELL, WELL).level == "degraded"


def test_a_little_better_is_not_better() -> None:
    assert after(LATE, *[Vitals(0.45)] * 10).level == "degraded"


def test_memory_counts_against_its_limit_if_there_is_one() -> None:
    levels = [after(Vitals(0, mb, 100)).level for mb in (79, 80, 95)]
    assert levels == ["healthy", "degraded", "unwell"]
    assert after(Vitals(0, 10_000)).level == "healthy"


def test_an_open_breaker_lets_others_go_first() -> None:
    health = after(Vitals(0, open_breakers=("openai",)))
    assert (health.level, health.rank(standby=False)) == ("degraded", 5)
    assert "openai" in health.why


def test_who_stands_by_comes_last_and_is_not_well_like_anybody_else() -> None:
    assert [after(each).rank(standby=True) for each in (WELL, LATE, VERY_LATE)] == [9, 9, None]

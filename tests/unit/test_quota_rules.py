from __future__ import annotations

import pytest

from bus.errors import SettingsError
from bus.guards.purse import Purse
from bus.guards.quota import Denied, Granted, Quota, Standing, Want, draw, hold, opened

DAY = 86_400.0
NOW = 1_000 * DAY


def take(standing: Standing | None, quota: Quota, now: float, **amounts: float) -> tuple[Standing, Granted | Denied]:
    drawn = draw(standing, quota, [Want(amounts, 60)], now=now)  # type: ignore[arg-type]
    return drawn.standing, drawn.answers[0]


def test_a_burst_goes_at_once_and_then_each_gets_a_moment_of_its_own() -> None:
    quota, standing = Quota(calls_per_s=2), None
    waits = []
    for _ in range(6):
        standing, answer = take(standing, quota, NOW, calls=1)
        assert isinstance(answer, Granted)
        waits.append(answer.wait_s)
    assert waits == pytest.approx([0, 0, 0.5, 1, 1.5, 2])


def test_whoever_would_wait_too_long_is_told_so_and_takes_nothing() -> None:
    quota = Quota(calls_per_min=1)
    standing, _ = take(None, quota, NOW, calls=1)
    drawn = draw(standing, quota, [Want({"calls": 1}, 10)], now=NOW)
    assert drawn.answers == [Denied(pytest.approx(60))]
    assert drawn.standing == standing


def test_all_meters_of_a_quota_have_to_cover_it() -> None:
    quota = Quota(calls_per_s=10, tokens_per_min=600)
    standing, first = take(None, quota, NOW, calls=1, tokens=590)
    standing, second = take(standing, quota, NOW, calls=1, tokens=20)
    assert (first, second) == (Granted(0), Granted(pytest.approx(1)))


def test_a_budget_comes_back_when_its_window_ends_and_its_end_is_told_once() -> None:
    quota = Quota(cost_per_day=5)
    standing, first = take(None, quota, NOW + 100, cost=4)
    drawn = draw(standing, quota, [Want({"cost": 2}, 60)], now=NOW + 200)
    assert drawn.answers == [Denied(DAY - 200, "cost_per_day")]
    assert drawn.spent == ("cost_per_day",)
    again = draw(drawn.standing, quota, [Want({"cost": 2}, 60)], now=NOW + 300)
    assert again.spent == ()
    _, next_day = take(again.standing, quota, NOW + DAY, cost=5)
    assert (first, next_day) == (Granted(0), Granted(0))


def test_after_a_hold_those_who_wait_come_one_by_one() -> None:
    quota = Quota(calls_per_s=10)
    standing = hold(None, quota, NOW + 20, NOW)
    waits = []
    for _ in range(3):
        standing, answer = take(standing, quota, NOW + 5, calls=1)
        assert isinstance(answer, Granted)
        waits.append(answer.wait_s)
    assert waits == pytest.approx([15.1, 15.2, 15.3])


def test_a_shorter_hold_does_not_end_a_longer_one() -> None:
    quota = Quota(calls_per_s=10)
    standing = hold(None, quota, NOW + 20, NOW)
    assert hold(standing, quota, NOW + 10, NOW) == standing


def test_what_was_used_less_is_there_for_others_and_what_was_used_more_is_waited_for() -> None:
    quota = Quota(tokens_per_min=600)
    standing, _ = take(None, quota, NOW, tokens=594)
    less = draw(standing, quota, [Want({"tokens": 500}, 60)], now=NOW, used={"tokens_per_min": -494})
    assert less.answers == [Granted(0)]
    more = draw(standing, quota, [Want({"tokens": 1}, 60)], now=NOW, used={"tokens_per_min": 15})
    assert more.answers == [Granted(pytest.approx(1))]


def test_loans_are_part_of_the_burst_and_there_are_none_while_others_wait() -> None:
    quota = Quota(calls_per_s=1_000)
    assert quota.meters[0].most == 750
    drawn = draw(None, quota, [Want({"calls": 1}, 60)], now=NOW, ahead={"calls": 10_000})
    assert drawn.loan == {"calls": 250}
    assert draw(drawn.standing, quota, [], now=NOW, ahead={"calls": 1}).loan == {}
    waiting, _ = take(drawn.standing, quota, NOW, calls=600)
    assert draw(waiting, quota, [], now=NOW + 0.05, ahead={"calls": 1}).loan == {}


def test_a_clock_far_ahead_does_not_stop_all_others() -> None:
    quota = Quota(calls_per_s=10)
    standing, _ = take(None, quota, NOW + DAY, calls=10)
    assert opened(standing, quota, NOW).at == NOW


def test_a_changed_quota_applies_from_the_next_draw_on() -> None:
    standing, _ = take(None, Quota(calls_per_s=100), NOW, calls=1)
    changed = opened(standing, Quota(calls_per_s=5, cost_per_day=2), NOW)
    assert {name: account.left for name, account in changed.accounts.items()} == {"calls_per_s": 5, "cost_per_day": 2}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "bounds nothing"),
        ({"calls_per_s": 0}, "over 0"),
        ({"calls_per_s": 1, "burst": 0.5}, "lets no call through"),
        ({"calls_per_s": 1, "burst": 2}, "burst"),
    ],
)
def test_a_quota_that_can_not_work_is_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Quota(**wrong)


def test_what_could_never_be_taken_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="tokens_per_min=600"):
        Quota(tokens_per_min=600).check({"tokens": 601})
    with pytest.raises(SettingsError, match="0 or more"):
        Quota(tokens_per_min=600).check({"tokens": -1})


def test_a_purse_pays_from_its_loan_until_that_is_over_and_gives_back_what_is_left_of_a_budget() -> None:
    purse = Purse(Quota(calls_per_s=1_000, cost_per_day=100))
    purse.lend({"calls": 3, "cost": 6.0}, 10.0, NOW)
    assert purse.pay({"calls": 1, "cost": 2.0}, 9.9)
    assert not purse.pay({"calls": 1, "cost": 5.0}, 9.9)
    assert not purse.pay({"calls": 1, "cost": 1.0}, 10.0)
    purse.put_back()
    owed = purse.empty()
    assert purse.due(owed, NOW) == {"cost_per_day": -4.0}
    assert purse.due(owed, NOW + DAY) == {}

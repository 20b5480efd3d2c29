"""When an occurrence is due, and which schedules can't work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from bus import Approval, Phase, Plan, ScheduleError
from bus.format.subjects import Subjects
from bus.runs.schedule import Schedule, in_six_fields

PLAN = Plan("gated", phases=[Phase("gate", approval=Approval())])
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def made(**when: Any) -> Schedule:
    return Schedule(**{"name": "nightly", "plan": PLAN, "input": msgspec.Raw(b"{}")} | when)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({}, "one of at, every_s and cron"),
        ({"every_s": 5, "at": NOON}, "one of at, every_s and cron"),
        ({"every_s": 0}, "every_s is a whole number"),
        ({"every_s": 1.5}, "every_s is a whole number"),
        ({"every_s": 5, "catch_up_s": 0}, "catch_up_s is a whole number"),
        ({"every_s": 5, "zone": "Europe/Berlin"}, "a zone is for cron"),
        ({"every_s": 5, "overlap": "queue"}, "overlap is skip or allow"),
        ({"at": datetime(2026, 11, 22)}, "a time with a time zone"),
        ({"cron": "0 2 * * *"}, "six fields"),
        ({"cron": "0 99 * * * *"}, "Bad minute"),
        ({"cron": "0 0 2 30 2 *"}, "Bad day-of-month"),
        ({"cron": "0 0 0 L * *"}, "six fields"),
        ({"cron": "0 0 0 * * 7"}, "Sunday is 0"),
        ({"cron": "0 0 0 * * 5-7"}, "Sunday is 0"),
        ({"cron": "0 0 0 * * 5#1"}, "six fields"),
        ({"cron": "@daily"}, "six fields"),
        ({"cron": "0 0 2 * * *", "zone": "Mars/Base"}, "no time zone 'Mars/Base'"),
        ({"every_s": 5, "name": "Nightly"}, "not a name"),
        ({"every_s": 5, "name": "n" * 48}, "longer than 47"),
    ],
    ids=str,
)
def test_a_schedule_that_can_not_work_is_refused_with_what_is_wrong(when: dict[str, Any], said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        made(**when)


def test_five_fields_of_cron_mean_second_zero() -> None:
    assert in_six_fields("30 2 * *  MON") == "0 30 2 * * MON"
    assert in_six_fields("*/5 30 2 * * MON") == "*/5 30 2 * * MON"


def test_an_occurrence_is_due_from_its_time_on_until_the_next_one() -> None:
    hourly = made(every_s=3600)
    assert hourly.due(NOON, NOON + timedelta(seconds=3599)) is None
    for late_s in (0, 1, 3599):
        assert hourly.due(NOON, NOON + timedelta(seconds=7200 + late_s)) == NOON + timedelta(hours=2)
    assert hourly.following(NOON, NOON) == NOON + timedelta(hours=1)


def test_a_time_is_due_once_and_for_ever_after() -> None:
    once = made(at=NOON)
    assert once.due(NOON - timedelta(days=1), NOON - timedelta(seconds=1)) is None
    assert once.due(NOON, NOON) == once.due(NOON, NOON + timedelta(days=400)) == NOON
    assert once.following(NOON, NOON) is None


def test_cron_is_due_in_its_own_time_zone() -> None:
    nightly = made(cron="0 0 2 * * *", zone="Europe/Berlin")
    in_winter, in_summer = datetime(2026, 11, 23, 1, tzinfo=UTC), datetime(2026, 7, 23, 0, tzinfo=UTC)
    for at in (in_winter, in_summer):
        since = at - timedelta(days=3)
        assert nightly.due(since, at) == nightly.due(since, at + timedelta(hours=5)) == at
        assert nightly.due(since, at - timedelta(microseconds=1)) == at - timedelta(days=1)
        assert nightly.following(since, at - timedelta(seconds=1)) == at


def test_nothing_is_due_that_was_before_the_schedule() -> None:
    assert made(cron="0 0 2 * * *").due(NOON, NOON + timedelta(hours=1)) is None


def test_an_hour_that_comes_twice_has_one_occurrence_at_a_time() -> None:
    # On 25 October 2026 the clocks of Berlin go from 3:00 back to 2:00.
    nightly = made(cron="0 30 2 * * *", zone="Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    found = {nightly.due(first - timedelta(days=1), first + timedelta(minutes=each)) for each in range(1, 600)}
    assert found == {first}
    between = first + timedelta(minutes=30)
    assert nightly.following(first, between) == first + timedelta(days=1, hours=1)
    assert made(cron="0 30 * * * *", zone="Europe/Berlin").following(first, between) == first + timedelta(hours=1)


def test_the_run_of_an_occurrence_has_one_possible_name() -> None:
    schedule = made(cron="0 0 2 * * *")
    run = schedule.run(datetime(2026, 11, 22, 3, tzinfo=UTC).astimezone())
    assert run == "nightly-20261122t030000"
    assert schedule.has(run)
    assert not any(map(schedule.has, ("nightly", "nightly-x", "my-nightly-20261122t030000", f"{run}0")))


def test_a_schedule_survives_the_wire() -> None:
    schedule = made(at=NOON, overlap="allow", catch_up_s=60)
    assert msgspec.json.decode(msgspec.json.encode(schedule), type=Schedule) == schedule


def test_a_timers_subject_names_the_schedule_and_where_it_was_made() -> None:
    subjects = Subjects()
    for subject in (subjects.timer("nightly", 7), subjects.rung("nightly", 7)):
        assert subjects.parse_timer(subject) == ("nightly", 7)
    for bad in ("bus.timer.set.nightly", "bus.timer.x.nightly.7", "bus.timer.set.nightly.07", "bus.timer.set.N.7"):
        with pytest.raises(ValueError, match="not a timer's subject"):
            subjects.parse_timer(bad)

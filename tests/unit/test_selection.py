"""What can be asked for, and the command line's words for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from bus.errors import InvalidName, SettingsError
from bus.format.subjects import Subjects
from bus.history.selection import Selection
from console.selecting import instant, speed


def test_a_run_is_looked_for_on_its_own_subject_and_among_the_dead() -> None:
    assert list(Selection(runs=["r1", "r2"]).filters(Subjects("shop"))) == [
        "shop.run.r1",
        "shop.run.r2",
        "shop.dead.*",
    ]
    assert list(Selection().filters(Subjects("shop"))) == ["shop.>"]
    with pytest.raises(InvalidName):
        Selection(runs=["no name"]).filters(Subjects("shop"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"runs": "r1"}, "runs is a list"),
        ({"since": datetime(2026, 1, 1)}, "since needs a time zone"),
        ({"limit": 0}, "limit is at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(fields: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Selection(**fields)  # type: ignore[arg-type]


def test_a_time_is_iso_or_an_age() -> None:
    assert instant(None, None, None) is None
    assert instant(None, None, "2026-01-31T12:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert instant(None, None, "2026-01-31T12:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    aged = instant(None, None, "2h")
    assert aged is not None
    assert timedelta(hours=2) <= datetime.now(UTC) - aged < timedelta(hours=2, minutes=5)
    for wrong in ("yesterday", "10 m", "99999999999w", ""):
        with pytest.raises(click.BadParameter, match="is not a time"):
            instant(None, None, wrong)


def test_a_speed_is_a_word_or_a_factor() -> None:
    assert (speed(None, None, "full"), speed(None, None, "original"), speed(None, None, "2.5")) == (None, 1.0, 2.5)
    for wrong in ("fast", "0", "-1", "inf", "nan"):
        with pytest.raises(click.BadParameter, match="is not a speed"):
            speed(None, None, wrong)

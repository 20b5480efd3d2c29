"""Which deaths are alike, and which are meant."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from bus.errors import SettingsError
from bus.letters.causes import alike, cause_of
from bus.letters.wanted import Wanted
from bus.problem import Problem
from bus.rules import dead
from bus.rules.dead import DeadLetter, Unreadable
from bus.rules.folding import fold
from bus.rules.plan import Phase
from tests.driver import BEGAN_AT, LOST, PERMANENT, Driver


def letter(problem: Problem = PERMANENT) -> DeadLetter:
    run = Driver(Phase("a", "price"))
    run.fail("a", problem)
    (found,) = dead.letters(fold(run.commits[:-1]), run.commits[-1])
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("unknown sku 'A-7'", "unknown sku 'B 12'"),
        ('no file "a.py"', 'no file "b.py"'),
        ("no result within 30 s", "no result within 0.5 s"),
        ("pricing-1a2b3c4d is gone", "pricing-deadbeef is gone"),
        ("order 550e8400-e29b-41d4-a716-446655440000 is closed", "order 7 is closed"),
        ("no result by 12:00:01", "no result by 13:59:59"),
    ],
)
def test_numbers_ids_and_quotes_do_not_count(one: str, other: str) -> None:
    assert alike(one) == alike(other)


def test_what_is_said_does() -> None:
    assert alike("no such sku") != alike("no such order")
    assert cause_of(letter()) != cause_of(letter(replace(PERMANENT, title="no such order")))
    assert (
        cause_of(letter()).key == cause_of(letter()).key != cause_of(letter(replace(PERMANENT, code="bad_output"))).key
    )


def test_a_choice_looks_at_all_that_is_said() -> None:
    found = letter()
    fitting = Wanted(
        capability="price",
        cause="error",
        error_class="permanent",
        code="rejected",
        group=cause_of(found).key,
        agent="agent",
        run="run-1",
        plan="plan",
        since=BEGAN_AT,
        until=BEGAN_AT + timedelta(seconds=1),
        numbers=(7, 8),
    )
    assert fitting.fits(7, BEGAN_AT, found)
    assert not fitting.fits(9, BEGAN_AT, found)
    assert not fitting.fits(7, BEGAN_AT + timedelta(seconds=1), found)
    for name in ("capability", "cause", "code", "group", "agent", "run", "plan"):
        assert not replace(fitting, **{name: "other"}).fits(7, BEGAN_AT, found), name
    assert not replace(fitting, error_class="unknown").fits(7, BEGAN_AT, found)


def test_bytes_have_no_run() -> None:
    raw = Unreadable("price", "bus.work.price.r.p.1", b"\xff", "not JSON", "pricing-1", agent="pricing")
    assert Wanted(cause="unreadable", agent="pricing").fits(1, BEGAN_AT, raw)
    assert not Wanted(run="r").fits(1, BEGAN_AT, raw)
    assert not Wanted(plan="p").fits(1, BEGAN_AT, raw)


def test_the_cause_is_how_it_ended() -> None:
    run = Driver(Phase("a", "do"))
    for _ in range(4):
        run.fail("a", LOST, cause="crashed")
    (crashed,) = dead.letters(fold(run.commits[:-1]), run.commits[-1])
    assert (crashed.cause, letter().cause) == ("crashed", "error")


@pytest.mark.parametrize(
    "wrong",
    [{"status": ["done"]}, {"status": "open"}, {"error_class": "bad"}, {"since": BEGAN_AT.replace(tzinfo=None)}],
)
def test_what_can_not_be_chosen_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        Wanted(**wrong)  # type: ignore[arg-type]

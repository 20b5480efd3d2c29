"""What a handler does outside, each thing once: the intention is recorded before, the outcome after."""

from __future__ import annotations

import msgspec

from bus.commands import Intend, Redrive, Settle
from bus.plan import Phase
from bus.retry import Retry
from tests.driver import LOST, Driver

DONE = msgspec.Raw(b'{"id":7}')


def begun() -> Driver:
    run = Driver(Phase("pay", "do", retry=Retry(lost=3)))
    run.take("pay")
    run.do(Intend("pay", None, 1, "one", "charge"))
    return run


def test_an_outcome_is_kept_for_later_attempts() -> None:
    run = begun()
    run.do(Settle("pay", None, 1, "one", "charge", DONE))
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert run.item("pay").effects["charge"] is not None
    assert "begun before" in run.refusal(Intend("pay", None, 2, "two", "charge"))
    assert "not under way" in run.refusal(Settle("pay", None, 2, "two", "charge", DONE))


def test_what_was_begun_and_not_settled_is_unknown_to_the_next_attempt() -> None:
    run = begun()
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert run.item("pay").effects == {"charge": None}
    run.do(Settle("pay", None, 2, "two", "charge", DONE))
    assert run.item("pay").effects["charge"] is not None


def test_a_zombie_neither_begins_nor_settles_anything() -> None:
    run = begun()
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert "not under way there" in run.refusal(Settle("pay", None, 1, "one", "charge", DONE))
    assert "not under way there" in run.refusal(Intend("pay", None, 1, "one", "refund"))


def test_what_was_done_stays_done_when_a_phase_is_redriven_and_not_when_it_is_done_again() -> None:
    run = begun()
    run.do(Settle("pay", None, 1, "one", "charge", DONE))
    run.fail("pay")
    run.redrive()
    assert "charge" in run.item("pay").effects
    run.complete("pay")
    run.do(Redrive("ann", ("pay",), afresh=True))
    assert run.item("pay").effects == {}

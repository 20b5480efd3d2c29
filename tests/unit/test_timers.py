from __future__ import annotations

from datetime import timedelta

import pytest

from bus.rules.commands import Cancel
from bus.rules.plan import Approval, Phase
from bus.rules.timers import Timer, armed
from tests.driver import TRANSIENT, Driver


def in_s(run: Driver, timers: list[Timer]) -> list[tuple[str, float]]:
    return [(timer.kind, (timer.at - run.now).total_seconds()) for timer in timers]


def test_work_that_waits_is_dispatched_and_one_day_given_up() -> None:
    run = Driver(Phase("a", "do", queue_timeout_s=30.0), timeout_s=100.0)
    assert in_s(run, sorted(armed(run.state))) == [("dispatch", 0.0), ("unclaimed", 30.0), ("run", 100.0)]


def test_a_retry_waits_for_its_time_first() -> None:
    run = Driver(Phase("a", "do", queue_timeout_s=30.0), timeout_s=100.0)
    run.fail("a", TRANSIENT)
    dispatch, unclaimed, _ = sorted(armed(run.state))
    assert dispatch.at == run.item("a").ready_at
    assert unclaimed.at - dispatch.at == timedelta(seconds=30)


def test_an_attempt_is_taken_from_its_holder_a_little_after_its_deadline() -> None:
    run = Driver(Phase("a", "do"), timeout_s=100.0)
    run.take("a", timeout_s=10.0)
    assert in_s(run, sorted(armed(run.state))) == [("deadline", 12.0), ("run", 100.0)]


def test_a_gate_expires() -> None:
    run = Driver(Phase("gate", approval=Approval(expires_s=20.0)), timeout_s=100.0)
    assert in_s(run, sorted(armed(run.state))) == [("expiry", 20.0), ("run", 100.0)]


def test_an_ended_run_has_no_timers() -> None:
    run = Driver(Phase("a", "do"))
    run.do(Cancel("ann"))
    assert list(armed(run.state)) == []


@pytest.mark.parametrize(("on_expiry", "status"), [("approve", "completed"), ("reject", "failed")])
def test_an_expired_gate_is_answered_as_its_plan_says(on_expiry: str, status: str) -> None:
    run = Driver(Phase("gate", approval=Approval(expires_s=20.0, on_expiry=on_expiry)))  # type: ignore[arg-type]
    run.wait(20)
    command = min(armed(run.state)).command(run.state)
    assert command is not None
    run.do(command)
    assert run.state.status == status


def test_a_missed_deadline_counts_as_lost_and_is_tried_again_at_once() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a", timeout_s=10.0)
    run.wait(12)
    command = min(armed(run.state)).command(run.state)
    assert command is not None
    run.do(command)
    first = run.item("a").attempts[0]
    assert (run.item("a").attempt, run.item("a").ready_at, first.cause) == (2, run.now, "timed_out")


def test_a_deadline_that_passed_for_an_older_attempt_changes_nothing() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a", timeout_s=10.0)
    stale = min(armed(run.state))
    run.fail("a", TRANSIENT)
    run.take("a", instance="two")
    before = run.item("a")
    command = stale.command(run.state)
    assert command is not None
    assert "attempt 1 of phase a is not held" in run.refusal(command)
    assert run.item("a") == before

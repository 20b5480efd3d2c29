from __future__ import annotations

from datetime import timedelta

import pytest

from bus.rules.commands import Cancel, Complete, Expire, Redrive
from bus.rules.events import PhaseReady, RunRedriven
from bus.rules.plan import Approval, Phase
from bus.rules.references import ref
from bus.rules.retry import Retry
from tests.driver import LOST, PERMANENT, TRANSIENT, Driver


def chain() -> Driver:
    return Driver(
        Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("c", "do", after=["b"]), Phase("d", "do", after=["c"])
    )


def test_a_redrive_goes_on_where_the_run_failed() -> None:
    run = chain()
    run.complete("a", 1)
    run.fail("b")
    happened = run.redrive()
    assert [event for event in happened if isinstance(event, PhaseReady)] == [PhaseReady(phase="b", attempt=2)]
    assert run.statuses == {"a": "completed", "b": "ready", "c": "pending", "d": "pending"}
    assert (run.state.status, run.state.passes, run.state.problem, run.state.ended_at) == ("in_progress", 2, None, None)
    for key in ("b", "c", "d"):
        run.complete(key)
    assert run.state.status == "completed"


def test_a_redrive_of_one_phase_takes_along_what_was_skipped_because_of_it() -> None:
    run = Driver(
        Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("x", "do"), Phase("y", "do", after=["x"]), timeout_s=60
    )
    run.fail("a")
    run.fail("x")
    run.redrive("a")
    assert run.statuses == {"a": "ready", "b": "pending", "x": "failed", "y": "skipped"}
    run.complete("a")
    run.complete("b")
    assert run.state.status == "failed"
    run.redrive()
    run.complete("x")
    run.complete("y")
    assert (run.state.status, run.state.passes) == ("completed", 3)


def test_a_redrive_after_a_cancel_opens_everything_that_was_stopped() -> None:
    run = chain()
    run.complete("a")
    run.take("b")
    run.do(Cancel("ann"))
    run.redrive()
    assert run.statuses == {"a": "completed", "b": "ready", "c": "pending", "d": "pending"}
    assert run.item("b").attempt == 2


@pytest.mark.parametrize("chosen", [("a",), ("b",)])
def test_a_run_is_not_completed_while_a_cancelled_phase_has_not_been_done(chosen: tuple[str, ...]) -> None:
    """Here `x` was stopped and nobody has asked for it again."""
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("x", "do"))
    run.do(Cancel("ann"))
    run.redrive(*chosen)
    for key in ("a", "b"):
        if run.statuses[key] == "ready":
            run.complete(key)
    assert not run.state.is_open
    assert run.state.status != "completed"


def test_a_redrive_after_the_deadline_has_as_much_time_again() -> None:
    run = Driver(Phase("a", "do"), timeout_s=60.0)
    run.wait(100)
    run.do(Expire())
    run.wait(100)
    run.redrive()
    assert run.state.deadline_at == run.now + timedelta(seconds=60)


def test_attempts_keep_counting_and_retries_begin_anew() -> None:
    run = Driver(Phase("a", "do", retry=Retry(transient=1)))
    for attempt in (1, 2):
        assert run.item("a").attempt == attempt
        run.fail("a", TRANSIENT)
    run.redrive()
    for attempt in (3, 4):
        assert run.item("a").attempt == attempt
        run.fail("a", TRANSIENT)
    assert run.state.status == "failed"
    assert [attempt.number for attempt in run.item("a").attempts] == [1, 2, 3, 4]


def test_what_is_redriven_forgets_why_it_was_given_up_and_keeps_its_attempts() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a")
    problem = PERMANENT.at("agent", "run-1", "a", None, 1)
    assert (run.item("a").problem, run.item("a").ended_at) == (problem, run.now)
    run.redrive()
    assert (run.item("a").problem, run.item("a").ended_at, run.state.phases["a"].problem) == (None, None, None)
    assert [attempt.problem for attempt in run.item("a").attempts] == [problem]


def test_an_each_phase_keeps_its_completed_items() -> None:
    run = Driver(Phase("a", "do", each=ref("input"), width=2), Phase("b", "do", input=ref("a")), input=[1, 2, 3, 4])
    run.complete("a", "one", 0)
    run.fail("a", PERMANENT, 1)
    run.complete("a", "three", 2)
    run.fail("a", PERMANENT, 3)
    happened = run.redrive("a")
    assert run.items("a") == ["completed", "ready", "completed", "ready"]
    assert [event for event in happened if isinstance(event, PhaseReady)] == [
        PhaseReady(phase="a", item=1, attempt=2),
        PhaseReady(phase="a", item=3, attempt=2),
    ]
    run.complete("a", "two", 1)
    run.complete("a", "four", 3)
    assert run.output("a") == ["one", "two", "three", "four"]
    assert run.statuses["b"] == "ready"


def test_an_each_phase_that_was_cancelled_half_way_goes_on_within_its_width() -> None:
    run = Driver(Phase("a", "do", each=ref("input"), width=1), input=[1, 2, 3])
    run.complete("a", "one", 0)
    run.take("a", 1)
    run.do(Cancel("ann"))
    run.redrive()
    assert run.items("a") == ["completed", "ready", "pending"]
    assert run.item("a", 1).attempt == 2
    run.complete("a", "two", 1)
    assert run.item("a", 2).attempt == 1
    run.complete("a", "three", 2)
    assert run.output("a") == ["one", "two", "three"]


def test_a_phase_cancelled_before_it_opened_expands_on_redrive() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", each=ref("a")))
    run.do(Cancel("ann"))
    run.redrive()
    run.complete("a", [1, 2])
    assert run.items("b") == ["ready", "ready"]


def test_a_rejected_gate_waits_again() -> None:
    run = Driver(Phase("gate", approval=Approval(expires_s=60.0)), Phase("b", "do", after=["gate"]))
    run.answer("gate", approve=False)
    run.wait(1000)
    run.redrive()
    assert run.statuses == {"gate": "waiting", "b": "pending"}
    assert run.state.phases["gate"].expires_at == run.now + timedelta(seconds=60)
    run.answer("gate")
    assert run.statuses["b"] == "ready"


def test_a_result_from_before_the_redrive_is_refused() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    stale = Complete("a", None, 1, "one", run.state.input.raw)
    run.do(Cancel("ann"))
    run.redrive()
    before = run.statuses
    run.do(stale)
    assert run.statuses == before == {"a": "ready"}


def test_what_failed_can_be_redriven_while_the_run_goes_on() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do", after=["a"]))
    run.fail("a")
    assert "nothing in it has failed" in Driver(Phase("a", "do")).refusal(Redrive("ann"))
    run.do(Redrive("ann"))
    assert run.statuses == {"a": "ready", "b": "ready", "c": "pending"}


@pytest.mark.parametrize("chosen", [("a",), ("a", "b")])
def test_a_phase_that_succeeded_is_not_redriven(chosen: tuple[str, ...]) -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"))
    run.complete("a")
    run.fail("b")
    assert "phase a is completed: only what failed can be redriven" in run.refusal(Redrive("ann", chosen))


def test_a_completed_run_is_not_redriven() -> None:
    """There is nothing left to do in it."""
    run = Driver(Phase("a", "do"))
    run.complete("a")
    run.refusal(Redrive("ann"))


def test_what_can_not_work_fails_again_and_the_run_ends_again() -> None:
    run = Driver(Phase("a", "do", input=ref("input.missing")), input={})
    happened = run.redrive()
    assert isinstance(happened[0], RunRedriven)
    assert (run.state.status, run.state.passes) == ("failed", 2)


def test_lost_attempts_are_counted_anew_after_a_redrive() -> None:
    run = Driver(Phase("a", "do", retry=Retry(lost=1)))
    run.fail("a", LOST, cause="crashed")
    run.fail("a", LOST, cause="crashed")
    assert run.state.status == "failed"
    run.redrive()
    run.fail("a", LOST, cause="crashed")
    assert run.item("a").attempt == 4
    assert run.state.is_open

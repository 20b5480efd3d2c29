"""Plans that say `on_failure="rollback"`: what a failed run did is undone, the last first, before it ends as failed."""

from __future__ import annotations

import msgspec
import pytest

from bus.errors import PlanError
from bus.rules import dead
from bus.rules.commands import Cancel, Expire, Intend, Redrive, Settle
from bus.rules.events import PhaseFailed, RunFailed
from bus.rules.folding import fold
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.verify import violations
from tests.driver import LOST, Driver

SEVEN = msgspec.Raw(b"7")


def trip(*, timeout_s: float = 3600.0) -> Driver:
    """A flight and a hotel are booked, then paid for; each can be undone, and so can what paying did outside."""
    return Driver(
        Phase("flight", "do", {"seat": ref("input.seat")}, compensate="undo.flight"),
        Phase("hotel", "do", after=["flight"], compensate="undo.hotel"),
        Phase("note", "do", after=["flight"]),
        Phase("pay", "do", after=["hotel", "note"], compensate="refund"),
        Phase("send", "do", after=["pay"]),
        input={"seat": 3},
        timeout_s=timeout_s,
        on_failure="rollback",
    )


def booked() -> Driver:
    run = trip()
    run.complete("flight", {"id": 1})
    run.complete("note")
    run.wait(1)
    run.complete("hotel", {"id": 2})
    return run


def test_a_failed_run_undoes_what_it_did_and_then_says_of_what_it_failed() -> None:
    run = booked()
    run.fail("pay")
    assert (run.state.status, run.state.capability("hotel")) == ("in_progress", "undo.hotel")
    run.complete("hotel")
    assert run.given("flight") == {"input": {"seat": 3}, "output": {"id": 1}}
    happened = run.complete("flight")
    assert run.statuses == {
        "flight": "rolled_back",
        "hotel": "rolled_back",
        "note": "completed",
        "pay": "failed",
        "send": "skipped",
    }
    assert isinstance(happened[-1], RunFailed)
    assert run.state.problem is not None
    assert (run.state.problem.code, run.state.problem.detail) == ("phases_failed", "pay: no such sku")
    assert (run.state.rollback, run.state.status) == (None, "failed")
    assert not list(violations(run.commits, run.now))


def test_the_failure_and_the_first_step_of_undoing_are_one_commit() -> None:
    run = booked()
    happened = run.fail("pay")
    assert [type(event).__name__ for event in happened][-5:] == [
        "PhaseFailed",
        "PhaseSkipped",
        "RunRollingBack",
        "PhaseUndoing",
        "PhaseReady",
    ]


def test_what_the_failed_phase_did_outside_is_undone_first() -> None:
    run = booked()
    run.take("pay")
    run.do(Intend("pay", None, 1, "one", "charge"))
    run.do(Settle("pay", None, 1, "one", "charge", SEVEN))
    run.do(Intend("pay", None, 1, "one", "mail"))
    run.fail("pay")
    assert run.state.capability("pay") == "refund"
    assert run.given("pay") == {"input": {}, "output": None, "effects": {"charge": {"outcome": 7}, "mail": {}}}


def test_a_dead_letter_is_redriven_with_all_that_was_undone_before_it() -> None:
    run = booked()
    run.take("pay")
    run.do(Intend("pay", None, 1, "one", "charge"))
    run.fail("pay")
    (letter,) = dead.letters(fold(run.commits[:-1]), run.commits[-1])
    assert (letter.capability, bytes(letter.payload), len(letter.attempts)) == ("do", b"{}", 1)
    assert not dead.is_open(letter, run.state), "it is being undone"
    for phase in ("pay", "hotel", "flight"):
        run.complete(phase)
    assert (run.state.status, dead.is_open(letter, run.state)) == ("failed", True)
    run.redrive(letter.phase)
    assert not dead.is_open(letter, run.state)
    assert run.statuses == {
        "flight": "ready",
        "hotel": "pending",
        "note": "completed",
        "pay": "pending",
        "send": "pending",
    }
    for phase in ("flight", "hotel", "pay", "send"):
        run.complete(phase)
    assert run.state.status == "completed"


def test_a_run_with_nothing_to_undo_ends_at_once() -> None:
    run = trip()
    run.fail("flight")
    assert (run.state.status, run.state.rollback) == ("failed", None)


def test_a_compensation_that_fails_is_a_dead_letter_and_a_person_goes_on() -> None:
    run = booked()
    run.fail("pay")
    run.fail("hotel")
    (letter,) = dead.letters(fold(run.commits[:-1]), run.commits[-1])
    assert (letter.capability, letter.phase, run.state.status) == ("undo.hotel", "hotel", "failed")
    assert run.state.problem is not None and run.state.problem.code == "rollback_failed"
    assert "of 5 phases failed: pay: no such sku" in run.state.problem.detail
    assert run.statuses["flight"] == "completed", "what comes after it waits for a person"
    run.redrive("hotel")
    assert (run.state.status, dead.is_open(letter, run.state)) == ("in_progress", False)
    run.complete("hotel")
    run.complete("flight")
    assert run.state.problem is not None
    assert (run.state.status, run.state.problem.code) == ("failed", "phases_failed")
    assert not list(violations(run.commits, run.now))


def test_a_compensation_that_has_died_goes_on_with_what_it_had_done() -> None:
    run = booked()
    run.fail("pay")
    run.take("hotel")
    run.do(Intend("hotel", None, run.item("hotel").attempt, "one", "release"))
    run.fail("hotel")
    run.redrive()
    assert run.item("hotel").effects == {"release": None}


def test_a_run_past_its_deadline_has_time_to_undo_what_it_did() -> None:
    run = booked()
    run.wait(3600)
    happened = run.do(Expire())
    assert [event.phase for event in happened if isinstance(event, PhaseFailed)] == ["pay"]
    assert (run.state.status, run.state.deadline_at > run.now) == ("in_progress", True)
    run.complete("hotel")
    run.complete("flight")
    assert run.state.problem is not None
    assert (run.state.status, run.state.problem.code) == ("failed", "expired")


def test_undoing_has_a_deadline_as_well() -> None:
    run = booked()
    run.fail("pay")
    run.wait(3601)
    run.fire_due()
    assert run.state.problem is not None
    assert (run.state.status, run.state.problem.code) == ("failed", "expired")
    assert "it was undone because" in run.state.problem.detail
    assert run.state.rollback is not None and run.state.rollback.left == ("hotel", "flight")


def test_a_cancelled_run_keeps_what_it_did() -> None:
    run = booked()
    run.do(Cancel("ann"))
    assert (run.state.status, run.statuses["flight"]) == ("cancelled", "completed")


def test_a_redriven_run_does_again_what_was_undone_and_undoes_it_again() -> None:
    run = booked()
    run.fail("pay")
    run.complete("hotel")
    run.complete("flight")
    run.redrive()
    assert run.given("flight") == {"seat": 3}
    assert (run.state.phases["flight"].begun, run.state.phases["pay"].begun) == (2, 1)
    run.complete("flight", {"id": 4})
    run.complete("hotel", {"id": 5})
    run.fail("pay", LOST)
    run.wait(60)
    for _ in range(3):
        run.fail("pay", LOST)
    assert run.given("hotel") == {"input": {}, "output": {"id": 5}}
    assert fold(run.commits) == run.state


def test_a_gate_that_is_closed_undoes_what_came_before_it() -> None:
    run = Driver(
        Phase("draft", "do", compensate="withdraw"),
        Phase("ok", approval=Approval(), after=["draft"]),
        on_failure="rollback",
    )
    run.complete("draft")
    run.answer("ok", approve=False)
    run.complete("draft")
    assert run.statuses == {"draft": "rolled_back", "ok": "failed"}


def test_a_plan_that_can_undo_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="no phase has a compensate"):
        Plan("p", phases=[Phase("a", "do")], on_failure="rollback")
    with pytest.raises(PlanError):
        Plan("p", phases=[Phase("a", "do", compensate="undo")], on_failure="undo")  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [[], [1], [1, 2, 3]])
def test_what_goes_over_a_list_that_was_undone_and_given_anew_goes_over_the_new_one(again: list[int]) -> None:
    """It went over as many items as the first list had: one shorter took the process of whoever decided with it."""
    run = Driver(
        Phase("list", "do", compensate="forget"),
        Phase("each", "do", each=ref("list")),
        on_failure="rollback",
    )
    run.complete("list", [1, 2])
    run.fail("each", item=0)
    run.complete("each", item=1)
    run.complete("list")
    assert run.statuses == {"list": "rolled_back", "each": "failed"}
    run.do(Redrive("ann"))
    run.complete("list", again)
    assert run.items("each") == ["ready"] * len(again)
    for index in range(len(again)):
        assert run.given("each", index) == again[index]
        run.complete("each", again[index], index)
    assert (run.state.status, run.output("each")) == ("completed", again)
    assert not list(violations(run.commits, run.now))


def test_an_optional_list_that_is_undone_and_then_can_not_be_had_leaves_nothing_to_go_over() -> None:
    run = Driver(
        Phase("list", "do", compensate="forget", optional=True),
        Phase("each", "do", each=ref("list")),
        on_failure="rollback",
    )
    run.complete("list", [1, 2])
    run.fail("each", item=0)
    run.complete("each", item=1)
    run.complete("list")
    run.do(Redrive("ann"))
    run.fail("list")
    assert run.statuses == {"list": "failed", "each": "completed"}
    assert run.output("each") == []

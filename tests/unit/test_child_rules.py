"""Child runs: what a parent's commits lead to in its children, and what a child's end leads to in its parent."""

from __future__ import annotations

import msgspec
import pytest

from bus.errors import PlanError
from bus.rules.commands import Begin, Cancel, Report
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.run import RunState
from bus.rules.timers import armed
from bus.runs import children
from tests.driver import PERMANENT, Driver

CHILD = Plan("child", phases=[Phase("one", "do", ref("input.n")), Phase("two", "do", ref("one"))], timeout_s=600)


def family() -> Driver:
    return Driver(
        Phase("before", "do"),
        Phase("sub", plan=CHILD, input={"n": ref("before")}),
        Phase("after", "do", input=ref("sub.two")),
    )


def step(run: Driver, before: RunState | None) -> children.Step:
    [found] = children.steps(before, run.state)
    return found


def test_a_phase_with_a_plan_starts_a_child_and_waits_for_it() -> None:
    run = family()
    before = run.state
    run.complete("before", 7)
    child, command = step(run, before)
    assert isinstance(command, Begin) and command.parent is not None
    assert (command.plan, bytes(command.input), command.parent.phase) == (CHILD, b'{"n":7}', "sub")
    assert (run.statuses["sub"], run.state.phases["sub"].child) == ("waiting", child)
    assert "expiry" in {timer.kind for timer in armed(run.state)}
    assert "waits for run" in run.refusal(run.answering("sub"))


def test_a_child_that_completes_gives_its_outputs_and_one_that_fails_its_problem() -> None:
    child = Driver(*CHILD.phases, input={"n": 1}, parent="run-1/sub")
    child.complete("one", 10)
    before = child.state
    child.complete("two", 20)
    parent, command = step(child, before)
    assert isinstance(command, Report) and isinstance(command.outcome, msgspec.Raw)
    assert (parent, msgspec.json.decode(command.outcome)) == ("run-1", {"one": 10, "two": 20})
    broken = Driver(*CHILD.phases, input={"n": 1}, parent="run-1/sub")
    before = broken.state
    broken.fail("one", PERMANENT)
    _, command = step(broken, before)
    assert isinstance(command, Report) and "1 of 2 phases failed" in str(command.outcome)


def test_the_report_of_a_child_moves_its_parent_on_once() -> None:
    run = family()
    run.complete("before", 7)
    child = run.state.phases["sub"].child
    report = Report("sub", child, msgspec.Raw(b'{"two":20}'))
    assert "does not wait" in run.refusal(Report("sub", "another", msgspec.Raw(b"1")))
    run.do(report)
    assert run.given("after") == 20
    assert "does not wait" in run.refusal(report)


def test_a_parent_that_is_stopped_stops_its_child() -> None:
    run = family()
    run.complete("before", 7)
    before = run.state
    run.do(Cancel("ann"))
    child, command = step(run, before)
    assert (child, isinstance(command, Cancel)) == (before.phases["sub"].child, True)


def test_a_child_of_a_later_pass_is_another_run() -> None:
    run = family()
    run.complete("before", 7)
    first = run.state.phases["sub"].child
    run.do(Report("sub", first, PERMANENT))
    run.redrive()
    assert run.state.phases["sub"].child not in {"", first}


def test_a_plan_of_its_own_is_all_a_phase_can_be() -> None:
    with pytest.raises(PlanError, match="one of a capability"):
        Plan("p", phases=[Phase("sub", "do", plan=CHILD)])
    assert Plan("p", phases=[Phase("sub", plan=CHILD)]).capabilities == ["do"]


def test_a_report_of_no_run_opens_no_gate_that_waits_for_none() -> None:
    """What an approval waits for is no run: a report that names none passed for what it waited for."""
    run = Driver(Phase("gate", approval=Approval()))
    assert "does not wait for run" in run.refusal(Report("gate", "", msgspec.Raw(b"1")))

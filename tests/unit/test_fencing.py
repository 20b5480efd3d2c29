"""A result counts only if it names the current attempt and comes from the instance that holds it."""

from __future__ import annotations

import msgspec
import pytest

from bus.rules.commands import Cancel, Complete, Fail, Take
from bus.rules.events import ResultRefused
from bus.rules.plan import Phase
from bus.rules.run import Late, RunState
from tests.driver import LOST, PERMANENT, Driver

OUTPUT = msgspec.Raw(b'"zombie"')


def but_for_the_log(state: RunState) -> RunState:
    """The state without what counts commits and events, and remembers late results."""
    return msgspec.structs.replace(state, events=0, position=0, late=())


def retried() -> Driver:
    """The first attempt was lost with its process; a second one is under way at another."""
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.fail("a", LOST, instance="one", cause="crashed")
    run.take("a", instance="two")
    return run


@pytest.mark.parametrize("late", [Complete("a", None, 1, "one", OUTPUT), Fail("a", None, 1, "one", PERMANENT)])
def test_the_result_of_an_old_attempt_is_recorded_as_refused_and_changes_nothing(late: Complete | Fail) -> None:
    run = retried()
    before = but_for_the_log(run.state)
    (refused,) = run.do(late)
    assert isinstance(refused, ResultRefused)
    assert (refused.phase, refused.attempt, refused.instance) == ("a", 1, "one")
    assert refused.outcome == ("completed" if isinstance(late, Complete) else "failed")
    assert refused.reason == "attempt 2 is in_progress"
    assert run.state.late == (Late("a", None, 1, "one"),)
    assert but_for_the_log(run.state) == before


@pytest.mark.parametrize("again", [Complete("a", None, 1, "one", OUTPUT), Fail("a", None, 1, "one", PERMANENT)])
def test_a_late_result_is_recorded_once_however_often_it_is_sent(again: Complete | Fail) -> None:
    run = retried()
    run.do(Complete("a", None, 1, "one", OUTPUT))
    assert run.refusal(again) == "a result of attempt 1 of phase a was refused before"
    assert len(run.state.late) == 1


@pytest.mark.parametrize(("attempt", "instance"), [(2, "one"), (1, "two"), (3, "two"), (0, "two"), (2, "")])
def test_attempt_and_instance_must_both_be_right(attempt: int, instance: str) -> None:
    run = retried()
    (refused,) = run.do(Complete("a", None, attempt, instance, OUTPUT))
    assert isinstance(refused, ResultRefused)
    assert run.statuses == {"a": "in_progress", "b": "pending"}
    run.do(Complete("a", None, 2, "two", msgspec.Raw(b'"real"')))
    assert run.output("a") == "real"


def test_a_result_counts_once() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.complete("a", "first")
    (refused,) = run.do(Complete("a", None, 1, "one", OUTPUT))
    assert isinstance(refused, ResultRefused)
    assert run.output("a") == "first"


def test_a_result_after_the_run_was_cancelled_is_refused() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.do(Cancel("ann"))
    (refused,) = run.do(Complete("a", None, 1, "one", OUTPUT))
    assert isinstance(refused, ResultRefused)
    assert (run.state.status, run.statuses) == ("cancelled", {"a": "cancelled"})


def test_a_result_nobody_was_asked_for_is_refused() -> None:
    run = Driver(Phase("a", "do"))
    (refused,) = run.do(Complete("a", None, 1, "one", OUTPUT))
    assert isinstance(refused, ResultRefused)
    assert run.statuses == {"a": "ready"}


def test_a_second_recoverer_comes_too_late_and_is_not_taken_for_a_zombie() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    recovering = Fail("a", None, 1, "one", LOST, "crashed", "its connection closed")
    run.do(recovering)
    assert "attempt 1 of phase a is not held by 'one'" in run.refusal(recovering)
    (zombie,) = run.do(Complete("a", None, 1, "one", OUTPUT))
    assert isinstance(zombie, ResultRefused)


def test_a_recoverer_that_comes_behind_the_result_changes_nothing() -> None:
    run = Driver(Phase("a", "do"))
    run.complete("a")
    reason = run.refusal(Fail("a", None, 1, "one", LOST, "frozen", "its beats stopped"))
    assert "is not held by 'one'" in reason


def test_an_attempt_is_taken_once() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a", instance="one")
    for instance in ("one", "two"):
        assert "attempt 1 is in_progress" in run.refusal(Take("a", None, 1, "do", "agent", instance, 5.0))


@pytest.mark.parametrize("attempt", [0, 1, 3, -1])
def test_a_stale_or_future_attempt_can_not_be_taken(attempt: int) -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", LOST, cause="crashed")
    reason = run.refusal(Take("a", None, attempt, "do", "agent", "one", 5.0))
    assert reason == f"attempt {attempt} of phase a can't be taken: attempt 2 is ready"


def test_an_item_s_result_is_no_other_item_s() -> None:
    run = Driver(Phase("a", "do", each="input"), input=[1, 2])
    run.take("a", 0, instance="one")
    run.take("a", 1, instance="two")
    (refused,) = run.do(Complete("a", 0, 1, "two", OUTPUT))
    assert isinstance(refused, ResultRefused)
    assert refused.item == 0
    assert run.items("a") == ["in_progress", "in_progress"]


def test_a_late_result_that_nobody_has_given_up_counts() -> None:
    """The deadline is enforced by whoever ends the attempt, not by the clock of whoever decides."""
    run = Driver(Phase("a", "do"))
    run.take("a", timeout_s=5.0)
    run.wait(100)
    run.complete("a", "late")
    assert run.state.status == "completed"

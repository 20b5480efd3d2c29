"""What follows from what, in runs of plain phases: order, joins, failures, deadlines, endings."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from bus.errors import Refused
from bus.problem import Problem
from bus.rules.commands import Answer, Begin, Cancel, Command, Complete, Expire, Fail, Progress, Redrive, Take
from bus.rules.decide import decide
from bus.rules.events import (
    PhaseCancelled,
    PhaseCompleted,
    PhaseProgressed,
    PhaseReady,
    PhaseSkipped,
    PhaseStarted,
    RunCompleted,
    RunFailed,
    RunStarted,
)
from bus.rules.inputs import input_of, order
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.retry import Retry
from bus.rules.run import RunState
from tests.driver import BEGAN_AT, HANDED_BACK, LOST, PERMANENT, RUN, TRANSIENT, Driver, due

NULL = msgspec.Raw(b"null")


def diamond() -> Driver:
    return Driver(
        Phase("top", "do"),
        Phase("left", "do", after=["top"]),
        Phase("right", "do", after=["top"]),
        Phase("bottom", "do", after=["left", "right"]),
    )


def test_a_run_begins_with_what_needs_nothing() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do", after=["a"]))
    assert run.statuses == {"a": "ready", "b": "ready", "c": "pending"}
    first, *rest = run.commits[0].events
    assert isinstance(first, RunStarted)
    assert rest == [PhaseReady(phase="a", attempt=1), PhaseReady(phase="b", attempt=1)]


def test_phases_in_a_row_open_one_after_the_other() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("c", "do", after=["b"]))
    for key in ("a", "b", "c"):
        assert [phase for phase, status in run.statuses.items() if status == "ready"] == [key]
        happened = run.complete(key)
    assert run.state.status == "completed"
    assert [type(event) for event in happened] == [PhaseCompleted, RunCompleted]


def test_the_commit_that_completes_a_phase_opens_the_next() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.take("a")
    assert [type(event) for event in run.complete("a")] == [PhaseCompleted, PhaseReady]


def test_a_diamond_joins_once() -> None:
    run = diamond()
    run.complete("top")
    assert run.statuses == {"top": "completed", "left": "ready", "right": "ready", "bottom": "pending"}
    run.complete("right")
    assert run.statuses["bottom"] == "pending"
    run.complete("left")
    assert run.statuses["bottom"] == "ready"
    run.complete("bottom")
    assert run.state.status == "completed"


def test_a_fan_in_waits_for_the_last_of_many() -> None:
    keys = [f"part-{number}" for number in range(50)]
    run = Driver(*(Phase(key, "do") for key in keys), Phase("all", "do", after=keys))
    for key in reversed(keys):
        assert run.statuses["all"] == "pending"
        run.complete(key)
    assert run.statuses["all"] == "ready"


def test_references_alone_put_phases_in_order() -> None:
    run = Driver(Phase("b", "do", input={"n": ref("a.n"), "p": ref("input.p")}), Phase("a", "do"), input={"p": "src"})
    assert run.statuses == {"b": "pending", "a": "ready"}
    run.complete("a", {"n": 3})
    assert input_of(run.state, "b", None) == {"n": 3, "p": "src"}


def test_a_reference_that_leads_nowhere_fails_the_phase_and_says_which() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", input=ref("a.missing")), Phase("c", "do", after=["b"]))
    run.complete("a", {})
    assert run.statuses == {"a": "completed", "b": "failed", "c": "skipped"}
    assert run.state.status == "failed"
    problem = run.state.phases["b"].problem
    assert problem is not None
    assert (problem.code, problem.error_class) == ("unresolved", "configuration")
    assert "'a.missing' leads nowhere" in problem.title


def test_a_run_whose_input_does_not_fit_ends_with_its_first_commit() -> None:
    run = Driver(Phase("a", "do", input=ref("input.path")), Phase("b", "do", after=["a"]), input=None)
    assert run.state.status == "failed"
    assert len(run.commits) == 1


def test_without_an_input_a_handler_gets_an_empty_object() -> None:
    assert input_of(Driver(Phase("a", "do")).state, "a", None) == {}


def test_an_order_holds_all_that_is_needed_to_begin() -> None:
    run = Driver(Phase(-8, "code.analyse", input={"x": ref("input")}, timeout_s=5.0), input=[1])
    made = order(run.state, "-8", None)
    assert (made.run, made.plan, made.phase, made.item, made.attempt) == (RUN, "plan", "-8", None, 1)
    assert made.input == {"x": [1]}
    made.input["x"].append(2)
    assert order(run.state, "-8", None).input == {"x": [1]}, "a handler may change what it is given"


def test_work_for_another_capability_can_not_be_taken() -> None:
    run = Driver(Phase("a", "pay"))
    assert "needs 'pay'" in run.refusal(Take("a", None, 1, "refund", "agent", "one", 5.0))


def test_a_failed_phase_skips_all_that_needs_it_while_the_rest_goes_on() -> None:
    run = Driver(
        Phase("bad", "do"),
        Phase("after-bad", "do", after=["bad"]),
        Phase("later", "do", after=["after-bad"]),
        Phase("gate", approval=Approval(), after=["later"]),
        Phase("good", "do"),
        Phase("after-good", "do", after=["good"]),
        Phase("both", "do", after=["after-good", "later"]),
    )
    happened = run.fail("bad")
    assert [event.phase for event in happened if isinstance(event, PhaseSkipped)] == [
        "after-bad",
        "later",
        "gate",
        "both",
    ]
    assert run.state.phases["later"].reason == "after-bad skipped"
    assert run.state.is_open
    run.complete("good")
    run.complete("after-good")
    assert run.statuses == {
        "bad": "failed",
        "after-bad": "skipped",
        "later": "skipped",
        "gate": "skipped",
        "good": "completed",
        "after-good": "completed",
        "both": "skipped",
    }
    assert run.state.status == "failed"


def test_a_failed_run_says_which_phases_failed() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do"))
    run.fail("a")
    run.complete("b")
    happened = run.fail("c", Problem("handler_error", "KeyError", "permanent", detail="'x'"))
    ending = happened[-1]
    assert isinstance(ending, RunFailed)
    assert (ending.problem.code, ending.problem.title) == ("phases_failed", "2 of 3 phases failed")
    assert ending.problem.detail == "a: no such sku; c: KeyError: 'x'"


def test_a_transient_failure_is_tried_again_after_a_delay() -> None:
    run = Driver(Phase("a", "do", retry=Retry(transient=1, transient_s=10.0)))
    run.fail("a", TRANSIENT)
    item = run.item("a")
    assert (run.statuses["a"], item.attempt) == ("ready", 2)
    assert item.ready_at is not None
    assert timedelta(seconds=5) <= item.ready_at - run.now <= timedelta(seconds=10)
    assert due(run.state, run.now) == []
    run.wait(10)
    assert due(run.state, run.now) == [("a", None)]
    run.fail("a", TRANSIENT)
    assert (run.statuses["a"], run.state.status) == ("failed", "failed")


def test_the_delay_a_handler_asked_for_is_the_one_that_is_waited() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", Problem("retry_asked", "the shop is closed", "transient", retry_after_s=90.0))
    assert run.item("a").ready_at == run.now + timedelta(seconds=90)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -5.0, 1e300])
def test_a_delay_that_makes_no_sense_does_not_stop_the_run(seconds: float) -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", Problem("retry_asked", "later", "transient", retry_after_s=seconds))
    ready_at = run.item("a").ready_at
    assert ready_at is not None
    assert ready_at <= run.now + timedelta(hours=1)


def test_lost_work_is_tried_again_at_once() -> None:
    run = Driver(Phase("a", "do"))
    happened = run.fail("a", LOST, cause="crashed")
    assert happened[-1] == PhaseReady(phase="a", attempt=2)
    assert due(run.state, run.now) == [("a", None)]


def test_work_handed_back_is_tried_again_at_once_however_often() -> None:
    run = Driver(Phase("a", "do", retry=Retry(transient=0, lost=0)))
    for attempt in range(1, 21):
        assert run.item("a").attempt == attempt
        run.fail("a", HANDED_BACK, cause="handed_back")
    assert due(run.state, run.now) == [("a", None)]


def test_work_that_nobody_takes_is_given_up() -> None:
    run = Driver(Phase("a", "do", retry=Retry(dependency=9)))
    run.do(Fail("a", None, 1, "", Problem("unclaimed", "nobody took it", "dependency"), "unclaimed"))
    assert run.state.status == "failed"
    assert run.item("a").attempts == ()


def test_work_that_has_been_taken_is_not_unclaimed() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    stale = Fail("a", None, 1, "", Problem("unclaimed", "nobody took it", "dependency"), "unclaimed")
    assert "does not wait to be taken" in run.refusal(stale)


def test_every_attempt_is_kept_with_its_problem() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", LOST, cause="crashed", instance="one")
    run.wait(1)
    run.complete("a", instance="two")
    first, second = run.item("a").attempts
    assert (first.number, first.instance, first.cause) == (1, "one", "crashed")
    assert first.problem == LOST.at("agent", "run-1", "a", None, 1)
    assert (second.number, second.instance, second.problem) == (2, "two", None)
    assert (first.ended_at, second.ended_at) == (BEGAN_AT, BEGAN_AT + timedelta(seconds=1))


def test_a_taken_attempt_has_a_deadline_the_plan_s_before_the_capability_s() -> None:
    run = Driver(Phase("a", "do", timeout_s=5.0), Phase("b", "do"))
    run.take("a", timeout_s=60.0)
    run.take("b", timeout_s=60.0)
    held = {phase.key: attempt.deadline_at - run.now for phase, _, attempt in run.state.held()}
    assert held == {"a": timedelta(seconds=5), "b": timedelta(seconds=60)}


def test_progress_is_kept_between_nothing_and_all_and_never_falls_back() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    for said, kept in ((-1.0, 0.0), (0.5, 0.5), (0.2, 0.5), (7.0, 1.0), (float("inf"), 1.0)):
        run.do(Progress("a", None, 1, "one", said, f"at {said}"))
        assert (run.item("a").attempts[0].fraction, run.item("a").attempts[0].note) == (kept, f"at {said}")


def test_a_new_attempt_begins_with_no_progress() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.do(Progress("a", None, 1, "one", 0.5, ""))
    run.fail("a", LOST, cause="crashed")
    run.take("a")
    assert [attempt.fraction for attempt in run.item("a").attempts] == [0.5, 0.0]


def test_progress_that_is_no_number_does_not_get_into_the_log() -> None:
    """JSON has no NaN: a commit that holds one can't be read back, and its run is lost."""
    run = Driver(Phase("a", "do"))
    run.take("a")
    try:
        happened = run.do(Progress("a", None, 1, "one", float("nan"), ""))
    except Refused:
        return
    assert all(0 <= event.fraction <= 1 for event in happened if isinstance(event, PhaseProgressed))


def test_progress_of_an_attempt_that_is_over_is_refused() -> None:
    run = Driver(Phase("a", "do"))
    assert "is not under way" in run.refusal(Progress("a", None, 1, "one", 0.5, ""))
    run.take("a")
    assert "is not under way" in run.refusal(Progress("a", None, 1, "two", 0.5, ""))
    assert "is not under way" in run.refusal(Progress("a", None, 2, "one", 0.5, ""))
    run.complete("a")
    assert "is not under way" in run.refusal(Progress("a", None, 1, "one", 0.5, ""))


def test_cancelling_a_run_ends_every_open_phase() -> None:
    run = diamond()
    run.complete("top")
    run.take("left")
    happened = run.do(Cancel("ann", "wrong branch"))
    assert [event.phase for event in happened if isinstance(event, PhaseCancelled)] == ["left", "right", "bottom"]
    assert run.statuses == {"top": "completed", "left": "cancelled", "right": "cancelled", "bottom": "cancelled"}
    assert (run.state.status, run.state.ended_at) == ("cancelled", run.now)
    assert not list(run.state.held())


def test_an_attempt_that_was_under_way_ends_when_its_run_is_cancelled() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.wait(3)
    run.do(Cancel("ann"))
    assert run.item("a").attempts[0].ended_at == run.now


def test_nothing_of_a_phase_is_open_when_its_run_has_been_cancelled() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", each="input"), input=[1, 2])
    run.do(Cancel("ann"))
    assert run.state.open_phases == 0
    assert [phase.open_items for phase in run.state.phases.values()] == [0, 0]


def test_a_run_ends_at_its_own_deadline() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]), timeout_s=60.0)
    assert run.state.deadline_at == BEGAN_AT + timedelta(seconds=60)
    run.take("a")
    run.wait(60)
    run.do(Expire())
    assert run.statuses == {"a": "failed", "b": "cancelled"}
    assert run.state.status == "failed"
    assert run.state.problem is not None
    assert run.state.problem.code == "expired"


def test_a_run_does_not_expire_before_its_deadline() -> None:
    """A supervisor that still counts from before a redrive must not end the new pass."""
    run = Driver(Phase("a", "do"), timeout_s=60.0)
    run.wait(60)
    run.do(Expire())
    run.redrive()
    run.refusal(Expire())
    assert run.state.is_open


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled", "expired"])
def test_an_ended_run_is_not_stopped_again(ending: str) -> None:
    run = Driver(Phase("a", "do"))
    match ending:
        case "completed":
            run.complete("a")
        case "failed":
            run.fail("a")
        case "cancelled":
            run.do(Cancel("ann"))
        case _:
            run.wait(3600)
            run.do(Expire())
    assert "has ended" in run.refusal(Cancel("ben"))
    assert "has ended" in run.refusal(Expire())


def test_a_terminal_status_never_changes() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do", after=["b"]))
    run.complete("a")
    run.fail("b")
    ended = run.statuses
    assert ended == {"a": "completed", "b": "failed", "c": "skipped"}
    assert "has ended" in run.refusal(Cancel("ann"))
    for key in ("a", "b"):
        run.refusal(Take(key, None, 1, "do", "agent", "one", 5.0))
        run.refusal(Answer(key, approve=True, by="ann"))
        run.do(Complete(key, None, 1, "one", NULL))
        run.refusal(Fail(key, None, 1, "one", PERMANENT))
        assert run.statuses == ended


def test_a_run_begins_once() -> None:
    run = Driver(Phase("a", "do"))
    assert run.refusal(Begin(run.state.plan, NULL)) == f"run {RUN} has already started"


COMMANDS: list[Command] = [
    Take("nowhere", None, 1, "do", "agent", "one", 5.0),
    Complete("nowhere", None, 1, "one", NULL),
    Fail("nowhere", None, 1, "one", PERMANENT),
    Progress("nowhere", None, 1, "one", 0.5, ""),
    Answer("nowhere", approve=True, by="ann"),
    Redrive("ann", ("nowhere",)),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_for_an_unknown_phase_is_refused_by_name(command: Command) -> None:
    run = Driver(Phase("a", "do"))
    if isinstance(command, Redrive):
        run.fail("a")
    assert "'nowhere'" in run.refusal(command)


@pytest.mark.parametrize("index", [0, 1, -1, 99])
def test_a_plain_phase_has_no_items(index: int) -> None:
    run = Driver(Phase("a", "do"))
    assert f"'a:{index}'" in run.refusal(Take("a", index, 1, "do", "agent", "one", 5.0))


def test_a_phase_that_is_not_open_can_not_be_taken() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    assert "no open phase 'b'" in run.refusal(Take("b", None, 1, "do", "agent", "one", 5.0))


@pytest.mark.parametrize("command", [*COMMANDS, Cancel("ann"), Expire()], ids=lambda command: type(command).__name__)
def test_a_run_that_does_not_exist_refuses_everything(command: Command) -> None:
    with pytest.raises(Refused, match="there is no run"):
        decide(None, command, run=RUN, now=BEGAN_AT)


def test_a_started_run_remembers_its_plan_and_input() -> None:
    plan = Plan("plan", version="7", phases=[Phase("a", "do")])
    started, _ = decide(None, Begin(plan, msgspec.Raw(b'{"x":1}')), run=RUN, now=BEGAN_AT)
    assert isinstance(started, RunStarted)
    assert (started.plan, bytes(started.input)) == (plan, b'{"x":1}')
    assert isinstance(Driver(Phase("a", "do")).state, RunState)


def test_taking_an_attempt_names_who_holds_it() -> None:
    run = Driver(Phase("a", "do"))
    (started,) = run.take("a", instance="two")
    assert isinstance(started, PhaseStarted)
    assert (started.agent, started.instance, started.attempt) == ("agent", "two", 1)


def test_no_attempt_has_longer_than_its_run() -> None:
    run = Driver(Phase("a", "do"), timeout_s=60.0)
    run.wait(50)
    run.take("a", timeout_s=300.0)
    assert [attempt.deadline_at for _, _, attempt in run.state.held()] == [run.state.deadline_at]


def test_nothing_is_begun_when_its_run_has_no_time_left() -> None:
    run = Driver(Phase("a", "do"), timeout_s=60.0)
    run.wait(60)
    assert "had until" in run.refusal(Take("a", None, 1, "do", "agent", "one", 5.0))


def test_what_could_only_be_tried_again_too_late_fails_at_once_for_its_own_reason() -> None:
    run = Driver(Phase("a", "do", retry=Retry(transient_s=90.0)), timeout_s=20.0)
    run.take("a")
    run.fail("a", TRANSIENT)
    assert run.state.status == "failed"
    assert run.item("a").problem is not None
    assert run.item("a").problem.title == TRANSIENT.title

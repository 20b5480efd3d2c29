"""What people and conditions do to a run: pause, skip, do again, a part of it only, signals, optional phases."""

from __future__ import annotations

import msgspec

from bus.errors import Refused
from bus.rules.commands import Begin, Expire, GiveUp, Pause, Redrive, Resume, Signal, Skip
from bus.rules.decide import decide
from bus.rules.events import PhaseReady, RunCompleted
from bus.rules.plan import Approval, Phase, Plan, WaitFor
from bus.rules.references import ref
from bus.rules.retry import Retry
from bus.rules.timers import armed
from tests.driver import BEGAN_AT, RUN, TRANSIENT, Driver

CHAIN = [Phase(key, "do", after=[key - 1] if key > -2 else []) for key in range(-2, 3)]


def test_a_paused_run_gives_out_no_work_and_what_is_under_way_may_end() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do", after=["a"]))
    run.take("a")
    run.do(Pause("ann", "deploy"))
    assert "is paused by ann" in run.refusal(run.taking("b"))
    run.complete("a")
    assert run.statuses == {"a": "completed", "b": "ready", "c": "ready"}
    assert {timer.kind for timer in armed(run.state)} == {"run"}
    assert "paused already" in run.refusal(Pause("ben"))


def test_a_resumed_run_sends_its_work_out_again_and_waits_in_the_queue_anew() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", retry=Retry(transient_s=300.0)))
    run.fail("b", TRANSIENT)
    later = run.item("b").ready_at
    run.do(Pause("ann"))
    run.wait(60)
    happened = run.do(Resume("ben"))
    assert [event for event in happened if isinstance(event, PhaseReady)] == [
        PhaseReady(phase="a", attempt=1),
        PhaseReady(phase="b", attempt=2, due_at=later),
    ]
    assert run.item("a").ready_at == run.now
    assert "not paused" in run.refusal(Resume("ben"))


def test_a_phase_skipped_by_hand_lets_pass_with_what_was_given_in_its_place() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", input={"x": ref("a.n"), "y": ref("a")}))
    run.take("a")
    run.do(Skip("a", "ann", "known already", msgspec.Raw(b'{"n":7}')))
    assert run.statuses == {"a": "skipped", "b": "ready"}
    assert run.given("b") == {"x": 7, "y": {"n": 7}}
    run.complete("b")
    assert run.state.status == "completed"


def test_a_failed_phase_is_skipped_in_a_new_pass_and_the_run_goes_on() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", input={"x": ref("a.n")}, after=["a"]))
    run.fail("a")
    assert run.state.status == "failed"
    run.do(Skip("a", "ann"))
    assert (run.statuses, run.state.passes) == ({"a": "skipped", "b": "ready"}, 2)
    assert run.given("b") == {"x": None}
    assert "nothing waits for it" in run.refusal(Skip("a", "ann"))


def test_a_run_can_be_a_part_of_its_plan() -> None:
    run = Driver(*CHAIN, first="-1", last="1")
    assert run.statuses == {"-2": "skipped", "-1": "ready", "0": "pending", "1": "pending", "2": "skipped"}
    for key in ("-1", "0", "1"):
        run.complete(key)
    assert run.state.status == "completed"


def test_a_part_that_is_not_in_the_plan_is_refused() -> None:
    for first, last in (("7", None), (None, "x"), ("2", "-2")):
        try:
            decide(None, Begin(Plan("p", phases=CHAIN), msgspec.Raw(b"{}"), first, last), run=RUN, now=BEGAN_AT)
        except Refused as refused:
            assert "phase" in refused.reason
        else:
            raise AssertionError((first, last))


def test_done_again_from_a_phase_on_everything_behind_it_runs_again() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", each=ref("a")), Phase("c", "do", after=["b"]))
    run.complete("a", [1, 2])
    run.complete("b", item=0)
    run.complete("b", item=1)
    run.complete("c")
    assert "still in progress" in Driver(Phase("a", "do")).refusal(Redrive("ann", ("a",), afresh=True))
    run.do(Redrive("ann", ("a",), afresh=True))
    assert run.statuses == {"a": "ready", "b": "pending", "c": "pending"}
    run.complete("a", [1, 2, 3])
    assert [item.attempt for item in run.state.phases["b"].items] == [2, 2, 2]


def test_an_optional_phase_that_fails_is_let_pass_and_named_at_the_end() -> None:
    run = Driver(Phase("a", "do", optional=True), Phase("b", "do", input={"x": ref("a.deep.inside")}))
    run.fail("a")
    assert run.statuses == {"a": "failed", "b": "ready"}
    assert run.given("b") == {"x": None}
    assert RunCompleted(failures=("a",)) in run.complete("b")
    assert (run.state.status, run.state.failures) == ("completed", ["a"])
    run.do(Redrive("ann", ("a",)))
    assert run.statuses["a"] == "ready"


def test_what_succeeded_of_an_optional_phase_of_items_is_there_for_those_behind_it() -> None:
    run = Driver(Phase("a", "do", each=ref("input"), optional=True), Phase("b", "do", ref("a")), input=[1, 2])
    run.complete("a", "one", item=0)
    run.fail("a", item=1)
    assert run.given("b") == ["one", None]


def test_a_phase_whose_condition_does_not_hold_is_skipped_and_lets_pass() -> None:
    run = Driver(
        Phase("a", "do"),
        Phase("fix", "do", when="a.broken > 0"),
        Phase("each", "do", each=ref("fix.parts")),
        Phase("b", "do", input={"x": ref("fix.parts")}, after=["each"]),
    )
    run.complete("a", {"broken": 0})
    assert run.statuses == {"a": "completed", "fix": "skipped", "each": "completed", "b": "ready"}
    assert run.given("b") == {"x": None}


def test_a_condition_that_can_not_be_told_fails_the_phase() -> None:
    run = Driver(Phase("a", "do"), Phase("fix", "do", when="a.broken > 0"))
    run.complete("a", {})
    assert run.statuses["fix"] == "failed"
    assert run.state.status == "failed"


def test_the_first_failed_item_ends_the_others_if_the_phase_says_so() -> None:
    run = Driver(Phase("a", "do", each=ref("input"), width=2, fail_fast=True), input=[1, 2, 3])
    run.take("a", 0)
    run.fail("a", item=1)
    assert run.items("a") == ["cancelled", "failed", "cancelled"]
    assert run.state.status == "failed"


def test_a_signal_opens_the_gate_that_waits_for_it_and_is_its_output() -> None:
    run = Driver(Phase("go", wait_for="window"), Phase("b", "do", input=ref("go.until")))
    assert run.statuses == {"go": "waiting", "b": "pending"}
    assert "waits for signal 'window'" in run.refusal(run.answering("go"))
    run.do(Signal("window", "ann", msgspec.Raw(b'{"until":5}')))
    assert run.statuses == {"go": "completed", "b": "ready"}
    assert (run.given("b"), run.state.phases["go"].answered_by) == (5, "ann")


def test_a_signal_that_came_early_is_kept_and_counts_once() -> None:
    run = Driver(
        Phase("a", "do"),
        Phase("go", wait_for="window", after=["a"]),
        Phase("again", wait_for="window", after=["go"]),
    )
    run.do(Signal("window", "ann", msgspec.Raw(b"1")))
    run.complete("a")
    assert run.statuses == {"a": "completed", "go": "completed", "again": "waiting"}


def test_a_signal_that_does_not_come_fails_its_phase() -> None:
    run = Driver(Phase("go", wait_for=WaitFor("window", expires_s=60)))
    run.wait(61)
    assert run.fire_due() == ["expiry"]
    assert run.state.phases["go"].problem is not None
    assert "signal 'window' did not come" in str(run.state.phases["go"].problem)


def test_the_total_time_of_a_phase_counts_over_all_its_attempts() -> None:
    run = Driver(Phase("a", "do", retry=Retry(transient=9), total_timeout_s=100.0), timeout_s=1_000.0)
    run.wait(60)
    run.fail("a", TRANSIENT)
    assert "has 100 s" in run.refusal(GiveUp("a"))
    run.wait(41)
    run.take("a")
    assert run.fire_due() == ["total"]
    assert run.statuses == {"a": "failed"}
    assert "all attempts together" in str(run.state.phases["a"].problem)


def test_a_gate_has_a_total_time_too() -> None:
    run = Driver(Phase("a", approval=Approval(), total_timeout_s=10.0))
    run.wait(11)
    assert run.fire_due() == ["total"]


def test_a_paused_run_still_ends_at_its_deadline() -> None:
    run = Driver(Phase("a", "do"), timeout_s=60.0)
    run.do(Pause("ann"))
    run.wait(61)
    run.do(Expire())
    assert (run.state.status, run.state.paused_at) == ("failed", None)


def test_a_signal_that_no_phase_will_ever_wait_for_is_refused_with_those_there_are() -> None:
    """It was kept for ever: whoever mistyped it believed that the gate was open."""
    run = Driver(Phase("a", "do"), Phase("b", wait_for="window", after=["a"]))
    assert "no phase of run run-1 waits for 'windw'; they wait for: window" in run.refusal(
        Signal("windw", "ann", msgspec.Raw(b"1"))
    )
    assert "they wait for: none" in Driver(Phase("a", "do")).refusal(Signal("go", "ann", msgspec.Raw(b"1")))

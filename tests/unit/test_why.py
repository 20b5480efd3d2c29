"""The account of a phase: one paragraph that says why it ran, for what it waited, why it failed, what comes next."""

from __future__ import annotations

import msgspec
import pytest

from bus.errors import NotFound
from bus.rules.commands import Answer, Cancel, Complete, Fail, Pause, Redrive, Resume, Reuse, Signal, Take
from bus.rules.events import Source
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.retry import RetryPolicy
from projections.why import Why, why
from tests.driver import BEGAN_AT, LOST, TRANSIENT, Driver


def account(run: Driver, phase: str, item: int | None = None) -> Why:
    return why(run.commits, phase, run.now, item)


def test_a_phase_that_needs_nothing_opens_with_the_run() -> None:
    run = Driver(Phase("a", "do"))
    run.wait(3)
    run.take("a")
    run.wait(2)
    run.complete("a")
    found = account(run, "a")
    assert found.opened == "a opened when the run began: it needs no other phase."
    assert found.waited == "It waited 3.0 s in the queue for an instance that offers 'do'."
    assert (found.failed, found.next_step) == ("", "")
    assert found.next == "It was completed 5.0 s after it opened."
    assert found.paragraph.count("\n") == 0


def test_a_phase_names_the_last_of_what_it_needed() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do", after=["a", "b"]))
    run.complete("b")
    run.wait(4)
    run.complete("a")
    found = account(run, "c")
    assert found.opened == "c opened 4.0 s after the run began, when a, the last of a and b, completed."
    assert found.waited == "It waited 4.0 s for a."
    assert (found.next, found.next_step) == ("It waits to be taken.", "phasebus agent run FILE.py:agent")


def test_a_phase_that_has_not_opened_names_what_is_missing() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.wait(7)
    found = account(run, "b")
    assert found.opened == "b has not opened: it needs a (ready)."
    assert found.waited == "It waited 7.0 s for what it needs."
    assert found.next_step == "phasebus doctor run-1"


def test_a_cached_output_and_why_it_was_not_cached_are_told() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"))
    source = Source("before", "a", 1, BEGAN_AT)
    run.do(Take("a", None, 1, "do", "agent", "one", 60.0, "", Reuse(msgspec.Raw(b"1"), source)))
    run.do(Take("b", None, 1, "do", "agent", "one", 60.0, "input.config changed"))
    assert "Its output was taken from the cache: run before had computed it." in account(run, "a").opened
    assert "It was computed, not taken from the cache, because input.config changed." in account(run, "b").opened


def test_a_wait_for_an_answer_says_of_whom_how_long_and_who_gave_it() -> None:
    run = Driver(Phase("ok", approval=Approval(who=["ann", "ben"])))
    run.wait(60)
    waiting = account(run, "ok")
    assert waiting.waited == "It waited 60.0 s for an answer of ann or ben."
    assert waiting.next_step == "phasebus run approve run-1 ok"
    run.do(Answer("ok", True, "ben"))
    assert account(run, "ok").waited == "It waited 60.0 s for an answer of ann or ben, which ben gave."


def test_a_wait_for_a_signal_and_for_a_child_run_say_for_which() -> None:
    run = Driver(Phase("go", wait_for="now"), Phase("child", plan=Plan("inside", phases=[Phase("x", "do")])))
    run.wait(2)
    assert account(run, "go").waited == "It waited 2.0 s for signal 'now'."
    assert account(run, "go").next_step == "phasebus run signal run-1 now"
    child = run.state.phases["child"].child
    assert account(run, "child").waited == f"It waited 2.0 s for run {child}."
    assert account(run, "child").next_step == f"phasebus run follow {child}"
    run.do(Signal("now", "ann", msgspec.Raw(b"1")))
    assert account(run, "go").waited == "It waited 2.0 s for signal 'now', which ann sent."


def test_a_pause_is_told_apart_from_the_queue() -> None:
    run = Driver(Phase("a", "do"))
    run.wait(5)
    run.do(Pause("ann"))
    assert account(run, "a").next_step == "phasebus run resume run-1"
    run.wait(30)
    run.do(Resume("ann"))
    run.wait(2)
    run.take("a")
    assert account(run, "a").waited == (
        "It waited 7.0 s in the queue for an instance that offers 'do' and 30.0 s because the run was paused by ann."
    )


def test_failures_are_told_with_who_how_long_and_the_chain_of_causes() -> None:
    run = Driver(Phase("a", "do", retry=RetryPolicy(transient=1, transient_s=10)))
    problem = msgspec.structs.replace(TRANSIENT, causes=("the line is down", "no route to host"))
    run.take("a")
    run.wait(3)
    run.do(Fail("a", None, 1, "one", problem))
    delayed = account(run, "a")
    assert delayed.failed == (
        "Attempt 1, by agent agent, instance one, failed after 3.0 s: "
        "the line is down [handler_error], because no route to host."
    )
    assert delayed.next.startswith("The next attempt is due in ")
    run.wait(20)
    run.fail("a", TRANSIENT)
    found = account(run, "a")
    assert "between attempts, as its retry policy says" in found.waited
    assert "It was given up after 2 attempts: the line is down [handler_error]." in found.failed
    assert found.next_step == "phasebus run redrive run-1"


def test_a_lost_attempt_says_what_was_seen_before_it_was_taken_back() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.wait(1)
    run.do(Fail("a", None, 1, "one", LOST, "crashed", "its connection closed"))
    assert "ended crashed after 1.0 s: the process is gone [lost]; seen before that: its connection closed" in (
        account(run, "a").failed
    )


def test_of_many_items_the_first_that_failed_is_told() -> None:
    run = Driver(Phase("each", "do", each=ref("input.items")), input={"items": [1, 2, 3]})
    run.complete("each", 1, 0)
    run.fail("each", item=1)
    found = account(run, "each")
    assert "Of its 3 items 1 completed, 1 failed." in found.opened
    assert "Attempt 1 (item 1), by agent agent" in found.failed
    single = account(run, "each", 0)
    assert (single.phase, single.status, single.failed) == ("each:0", "completed", "")


def test_what_is_under_way_says_since_when_and_until_when() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.wait(5)
    found = account(run, "a")
    assert found.next == "Attempt 1 is under way on one since 5.0 s and has until 2026-01-01 00:01:00 UTC."
    run.wait(60)
    assert "is past its deadline" in account(run, "a").next


def test_what_was_skipped_stopped_or_redriven_says_by_whom() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.fail("a")
    assert account(run, "b").opened == "b was skipped: a failed."
    run.do(Redrive("ann"))
    assert account(run, "a").opened == "a ran again because ann redrove the run."
    run.do(Cancel("ben", "enough"))
    assert account(run, "a").failed.endswith("It was stopped: enough.")


def test_a_phase_that_is_not_there_is_refused_with_those_that_are() -> None:
    run = Driver(Phase("a", "do"))
    with pytest.raises(NotFound, match="it has a"):
        account(run, "b")
    with pytest.raises(NotFound, match="no item 7"):
        account(run, "a", 7)


def test_a_result_is_not_needed_to_tell() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.do(Complete("a", None, 1, "one", msgspec.Raw(b"null")))
    assert account(run, "a").status == "completed"

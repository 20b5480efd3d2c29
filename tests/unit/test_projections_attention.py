"""What needs a look: each kind of concern, its cause, and the command that helps."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bus.rules.commands import Answer, Cancel, Expire, Pause
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from projections.attention import Concern, Living, concerns
from projections.history import History, learn
from tests.driver import Driver as Run
from tests.unit.test_projections_runs import CHAIN, FANNED, GATED, START, Driver, simulate

HERE = Living({"agent-1"}, {"work"})
NOBODY = Living(set(), set())
NONE = History()


def look(driver: Driver, living: Living | None = HERE, *, at_s: float, history: History = NONE) -> list[Concern]:
    return concerns([driver.state], living, history, START + timedelta(seconds=at_s))


def only(found: list[Concern]) -> Concern:
    assert len(found) == 1, found
    return found[0]


def past(*seconds: float) -> History:
    return learn(
        simulate(CHAIN, lambda *_, took=took: took, run=f"past-{run}")[-1][1] for run, took in enumerate(seconds)
    )


def test_a_healthy_run_needs_no_look() -> None:
    assert look(Driver(CHAIN), at_s=60) == []
    assert look(Driver(CHAIN).take("a"), at_s=60) == []


def test_a_gate_waits_with_the_command_that_opens_it() -> None:
    concern = only(look(Driver(GATED).take("a").complete("a", at_s=3), at_s=4))
    assert (concern.kind, concern.phase, concern.since) == ("waiting", "ok", START + timedelta(seconds=3))
    assert concern.next_step == "phasebus run approve r ok"
    assert concern.cause == "waits for an answer, until 2026-01-08 00:00:03 UTC: Fine?"


def test_a_negative_key_is_not_taken_for_an_option() -> None:
    gate = GATED.phases[1].approval
    driver = Driver(Plan("p", phases=[Phase(-8, approval=gate)]))
    assert only(look(driver, at_s=1)).next_step == "phasebus run approve r -- -8"


def test_work_nobody_can_take_is_starved_after_a_few_seconds() -> None:
    driver = Driver(CHAIN)
    assert look(driver, NOBODY, at_s=4) == []
    concern = only(look(driver, NOBODY, at_s=6))
    assert (concern.kind, concern.phase, concern.since) == ("starved", "a", START)
    assert concern.cause == "no live agent offers 'work'"
    assert concern.next_step == "phasebus agent run FILE.py:agent"


def test_nothing_is_concluded_when_nobody_knows_who_is_there() -> None:
    assert look(Driver(CHAIN), None, at_s=60) == []
    assert look(Driver(CHAIN).take("a"), None, at_s=60) == []


def test_items_with_the_same_trouble_are_one_concern() -> None:
    plan = Plan("p", phases=[Phase("each", "work", each=ref("input.list"))])
    driver = Driver(plan, value={"list": list(range(5))}).take("each", 0).complete("each", 0, at_s=1)
    concern = only(look(driver, NOBODY, at_s=60))
    assert (concern.item, concern.others) == (1, 3)


def test_a_retry_to_come_shows_what_failed_and_when_it_goes_on() -> None:
    driver = Driver(CHAIN).take("a").fail("a", at_s=10, error_class="dependency")
    concern = only(look(driver, at_s=10))
    assert (concern.kind, concern.since) == ("retrying", START + timedelta(seconds=10))
    assert concern.cause.startswith("attempt 1 failed (it broke); the next is due 2026-01-01 00:00:1")
    assert look(driver, at_s=16) == []


def test_an_attempt_whose_process_is_gone_is_stuck() -> None:
    driver = Driver(CHAIN).take("a", at_s=1)
    assert look(driver, NOBODY, at_s=2) == []
    concern = only(look(driver, NOBODY, at_s=10))
    assert (concern.kind, concern.since) == ("stuck", START + timedelta(seconds=1))
    assert concern.cause.startswith("process gone: attempt 1 on agent-1")


def test_an_attempt_past_its_deadline_is_stuck() -> None:
    driver = Driver(CHAIN).take("a", timeout_s=30)
    assert look(driver, at_s=30) == []
    concern = only(look(driver, at_s=31))
    assert (concern.kind, concern.since) == ("stuck", START + timedelta(seconds=30))
    assert concern.cause.startswith("past its deadline")


def test_an_attempt_slower_than_ever_is_stuck() -> None:
    history = past(20, 22, 25, 30, 18, 24, 26, 21)
    driver = Driver(CHAIN).take("a")
    assert look(driver, at_s=31, history=history) == []
    concern = only(look(driver, at_s=120, history=history))
    assert concern.cause.startswith("slower than ever before: attempt 1 on agent-1 has run for 2 min; the longest of 8")
    assert concern.next_step == "phasebus run show r"


def test_fewer_than_8_past_attempts_teach_no_limit() -> None:
    assert look(Driver(CHAIN).take("a"), at_s=3000, history=past(20, 22, 25, 30, 18, 24, 26)) == []


def test_a_failed_run_leads_to_its_dead_letters() -> None:
    concern = only(look(Driver(CHAIN).take("a").fail("a", at_s=2), at_s=3))
    assert (concern.kind, concern.phase, concern.since) == ("failed", "a", START + timedelta(seconds=2))
    assert concern.cause == "1 of 2 phases failed: a: it broke"
    assert concern.next_step == "phasebus dead ls"


def test_a_run_that_failed_without_dead_work_can_be_redriven() -> None:
    rejected = Driver(GATED).take("a").complete("a").do(Answer("ok", False, "ann"))
    assert only(look(rejected, at_s=3)).next_step == "phasebus run redrive r"


@pytest.mark.parametrize("overdue", [True, False])
def test_an_open_run_past_its_own_deadline_is_stuck(overdue: bool) -> None:
    plan = Plan("p", phases=[Phase("a", "work")], timeout_s=100)
    driver = Driver(plan)
    if overdue:
        assert only(look(driver, at_s=101)).kind == "stuck"
    else:
        assert only(look(driver.do(Expire(), at_s=101), at_s=102)).kind == "failed"


def test_what_was_stopped_on_purpose_needs_no_look() -> None:
    assert look(Driver(CHAIN).take("a").do(Cancel("ann")), NOBODY, at_s=1000) == []


def test_the_most_urgent_comes_first_and_then_the_oldest() -> None:
    gone = Driver(CHAIN, "gone", at_s=9).take("a")
    asked = Driver(GATED, "asked", at_s=2).take("a").complete("a")
    asked_before = Driver(GATED, "asked-before").take("a").complete("a")
    failed = Driver(FANNED, "failed", value={}).state
    found = concerns([failed, asked.state, asked_before.state, gone.state], NOBODY, NONE, START + timedelta(seconds=60))
    assert [concern.run for concern in found] == ["gone", "asked-before", "asked", "failed"]


def test_a_gate_for_a_signal_says_which_and_how_to_send_it() -> None:
    run = Run(Phase("go", wait_for="window"))
    [concern] = concerns([run.state], None, NONE, run.now)
    assert concern.cause == "waits for signal 'window', until 2026-01-08 00:00:00 UTC"
    assert concern.next_step == "phasebus run signal run-1 window"


def test_a_paused_run_is_named_and_nothing_else_is_held_against_it() -> None:
    run = Run(Phase("a", "do"))
    run.do(Pause("ann"))
    run.wait(3000)
    [concern] = concerns([run.state], NOBODY, NONE, run.now)
    assert (concern.kind, concern.next_step) == ("paused", "phasebus run resume run-1")


def test_those_who_are_asked_are_named() -> None:
    run = Run(Phase("gate", approval=Approval(who=["ann", "ben"])))
    [concern] = concerns([run.state], None, NONE, run.now)
    assert concern.cause.startswith("waits for an answer of ann or ben, until")

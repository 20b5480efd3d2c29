"""Lineage: each event leads back to what it came of, across phases, attempts, messages and runs."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from bus.format.envelope import envelope
from bus.history.happening import Happening
from bus.history.lineage import Lineage
from bus.rules.commands import Answer, Begin, Cancel, Redrive, Report, Signal
from bus.rules.decide import decide
from bus.rules.events import Commit, Parent, RunCompleted, type_of
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from tests.driver import BEGAN_AT, TRANSIENT, Driver
from tests.unit.test_projections_runs import told


def name(each: Happening) -> str:
    kind = each.type.rpartition(".v")[0]
    place = each.phase if each.item is None else f"{each.phase}:{each.item}"
    return f"{kind} {place}" if place else kind


def links(lineage: Lineage) -> dict[str, str]:
    """Each event's cause, the newest of the same name."""
    found = {}
    for spot, each in lineage.found.items():
        cause = lineage.cause(spot)
        found[name(each)] = name(lineage.found[cause]) if cause is not None else ""
    return found


def test_a_phase_opens_because_the_last_one_it_needs_has_ended() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do"), Phase("c", "do", after=["a", "b"]))
    run.complete("b")
    run.complete("a")
    run.complete("c")
    found = links(Lineage(told(run.commits)))
    assert found["run.started"] == ""
    assert found["phase.ready b"] == "run.started"
    assert found["phase.started b"] == "phase.ready b"
    assert found["phase.completed b"] == "phase.started b"
    assert found["phase.ready c"] == "phase.completed a"
    assert found["run.completed"] == "phase.completed c"


def test_causes_lead_back_to_the_start_and_effects_to_the_end() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.complete("a")
    run.complete("b")
    lineage = Lineage(told(run.commits))
    last = max(lineage.found)
    chain = [name(lineage.found[each]) for each in lineage.causes(last)]
    assert chain[0] == "phase.completed b"
    assert chain[-1] == "run.started"
    place = min(lineage.found)
    while effects := lineage.effects(place):
        place = effects[-1]
    assert place == last


def test_a_retry_comes_of_the_attempt_that_failed_and_a_redrive_of_somebody() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", TRANSIENT)
    found = links(Lineage(told(run.commits)))
    assert found["phase.attempt_failed a"] == "phase.started a"
    assert found["phase.ready a"] == "phase.attempt_failed a"
    run.wait(10)
    run.fail("a")
    run.do(Redrive("ann"))
    found = links(Lineage(told(run.commits)))
    assert found["phase.failed a"] == "phase.attempt_failed a"
    assert found["run.failed"] == "phase.failed a"
    assert found["run.redriven"] == ""
    assert found["phase.ready a"] == "run.redriven"


def test_gates_lead_to_who_opened_them_and_a_cancellation_to_the_decision() -> None:
    run = Driver(Phase("ok", approval=Approval()), Phase("go", wait_for="now", after=["ok"]), Phase("a", "do"))
    run.do(Answer("ok", True, "ann"))
    run.do(Signal("now", "ben", msgspec.Raw(b"1")))
    run.do(Cancel("ann"))
    found = links(Lineage(told(run.commits)))
    assert found["phase.approved ok"] == "phase.waiting ok"
    assert found["phase.waiting go"] == "phase.approved ok"
    assert found["phase.completed go"] == "phase.waiting go"
    assert found["phase.cancelled a"] == "run.cancelled"
    assert found["run.cancelled"] == ""


def test_items_lead_through_their_phase() -> None:
    run = Driver(Phase("each", "do", each=ref("input.items"), width=1), input={"items": [1, 2]})
    run.complete("each", 1, 0)
    found = links(Lineage(told(run.commits)))
    assert found["phase.expanded each"] == "run.started"
    assert found["phase.ready each:0"] == "phase.expanded each"
    assert found["phase.ready each:1"] == "phase.completed each:0"
    run.complete("each", 1, 1)
    assert links(Lineage(told(run.commits)))["phase.completed each"] == "phase.completed each:1"


def test_a_child_run_comes_of_the_phase_that_waits_for_it_and_ends_that() -> None:
    inside = Plan("inside", phases=[Phase("x", "do")])
    parent = Driver(Phase("child", plan=inside))
    child = parent.state.phases["child"].child
    begun = decide(None, Begin(inside, msgspec.Raw(b"{}"), parent=Parent("run-1", "child")), run=child, now=parent.now)
    lineage = Lineage([*told(parent.commits), *told([Commit(child, "c1", parent.now, 10, begun)])])
    cause = lineage.cause((10, 0))
    assert cause is not None
    assert name(lineage.found[cause]) == "phase.waiting child"
    assert [name(lineage.found[each]) for each in lineage.effects(cause)] == ["run.started"]
    ended = Commit(child, "c2", parent.now, 11, [RunCompleted()])
    parent.do(Report("child", child, msgspec.Raw(b"{}")))
    reported = msgspec.structs.replace(parent.commits[-1], position=12)
    lineage = Lineage(
        [*told(parent.commits[:-1]), *told([Commit(child, "c1", parent.now, 10, begun), ended, reported])]
    )
    assert lineage.cause((12, 0)) == (11, 0)


def test_a_message_leads_to_the_attempt_that_sent_it() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    commit = run.commits[-1]
    assert [type_of(each) for each in commit.events] == ["phase.started.v1"]
    stored = [withid(each) for each in told(run.commits)]
    sent = envelope("topic.published.v1", 1, id="m-1", source="/x", time=BEGAN_AT, causationid=commit.id)
    at = BEGAN_AT + timedelta(seconds=1)
    message = Happening(position=50, subject="bus.topic.news", stored_at=at, message=sent)
    lineage = Lineage([*stored, message])
    assert lineage.causes((50, 0)) == [(2, 0), (1, 1), (1, 0)]
    assert lineage.named("m-1") == (50, 0)


def test_a_message_that_names_itself_as_its_cause_has_none() -> None:
    sent = envelope("topic.published.v1", 1, id="m-1", source="/x", time=BEGAN_AT, causationid="m-1")
    lineage = Lineage([Happening(position=50, subject="bus.topic.news", stored_at=BEGAN_AT, message=sent)])
    assert lineage.causes((50, 0)) == []


def withid(each: Happening) -> Happening:
    """With the envelope that the log would have."""
    assert each.commit is not None
    message = envelope("run.commit.v1", {}, id=each.commit.id, source="/x", time=each.at, runid=each.commit.run)
    return msgspec.structs.replace(each, message=message)

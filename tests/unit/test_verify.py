"""The verifier finds what it is for: each promise, broken in a log made by hand, is named with its place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest

from bus.rules.commands import Pause, Redrive, Resume, Skip
from bus.rules.events import (
    Commit,
    Event,
    PhaseCompleted,
    PhaseFailed,
    PhaseReady,
    PhaseStarted,
    RunCompleted,
    RunStarted,
)
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.verify import violations
from tests.driver import BEGAN_AT, PERMANENT, RUN, TRANSIENT, Driver

LATER = BEGAN_AT + timedelta(hours=1)
PLAN = Plan("p", phases=[Phase("a", "do"), Phase("b", "do", after=["a"])])
STARTED = RunStarted(plan=PLAN, input=msgspec.Raw(b"{}"), deadline_at=LATER)
READY = PhaseReady(phase="a", attempt=1)
TAKEN = PhaseStarted(phase="a", attempt=1, agent="x", instance="x-1", deadline_at=LATER)
DONE = PhaseCompleted(phase="a", attempt=1, output=msgspec.Raw(b"1"))
NEXT = PhaseReady(phase="b", attempt=1)
OUTCOME = "an outcome never changes"
ONCE = "a result counts once, for the attempt under way"
NUMBER = "an attempt's number is used once"
ARMED = "whatever is open has something armed that ends it"
FOLLOWS = "a commit follows from those before it"


def commits(*batches: Sequence[Event]) -> list[Commit]:
    return [Commit(RUN, str(place), BEGAN_AT, place, list(events)) for place, events in enumerate(batches, 1)]


BROKEN: dict[str, tuple[list[Commit], str, int]] = {
    "nothing is ready": (commits([STARTED]), ARMED, 1),
    "what it needs has ended": (commits([STARTED, READY], [TAKEN], [DONE]), ARMED, 3),
    "ended with something open": (commits([STARTED, READY], [RunCompleted()]), ARMED, 2),
    "a result twice": (commits([STARTED, READY], [TAKEN], [DONE, NEXT], [DONE]), ONCE, 4),
    "a result of nobody": (commits([STARTED, READY], [DONE, NEXT]), ONCE, 2),
    "taken twice": (commits([STARTED, READY], [TAKEN], [TAKEN]), ONCE, 3),
    "a number once more": (commits([STARTED, READY], [TAKEN], [DONE, NEXT], [READY]), NUMBER, 4),
    "an outcome that changes": (
        commits([STARTED, READY], [TAKEN], [DONE, NEXT], [PhaseFailed(phase="a", problem=PERMANENT)]),
        OUTCOME,
        4,
    ),
    "a phase that is not there": (commits([STARTED, READY], [PhaseReady(phase="z", attempt=1)]), FOLLOWS, 2),
    "no beginning": (commits([READY]), FOLLOWS, 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_named_with_its_place(name: str) -> None:
    log, promise, position = BROKEN[name]
    found = list(violations(log, BEGAN_AT))
    assert (promise, position) in {(each.promise, each.position) for each in found}, found


def test_what_should_have_ended_is_overdue() -> None:
    run = Driver(Phase("a", "do"), Phase("gate", approval=Approval(expires_s=60)), timeout_s=3600)
    run.take("a", timeout_s=30)
    assert not list(violations(run.commits, run.now + timedelta(seconds=60)))
    late = list(violations(run.commits, run.now + timedelta(seconds=100)))
    assert [each.phase for each in late] == ["a", "gate"]
    assert {each.promise for each in late} == {"what is due ends in time"}


def test_a_run_with_all_that_can_happen_to_it_keeps_every_promise() -> None:
    run = Driver(
        Phase("a", "do"),
        Phase("b", "do", each=ref("a"), width=1),
        Phase("c", "do", after=["b"], optional=True),
        Phase("gate", approval=Approval(), after=["c"]),
    )
    run.fail("a", TRANSIENT)
    run.wait(10)
    run.complete("a", [1, 2])
    run.do(Pause("ann"))
    run.do(Resume("ann"))
    run.complete("b", item=0)
    run.fail("b", item=1)
    run.do(Redrive("ann"))
    run.complete("b", item=1)
    run.fail("c")
    run.do(Skip("gate", "ann"))
    assert run.state.status == "completed"
    run.do(Redrive("ann", ("a",), afresh=True))
    assert not list(violations(run.commits, run.now))

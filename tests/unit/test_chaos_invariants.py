"""The judge of chaos is judged: each thing it looks for is put into a log, and found."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.chaos.faults import schedule
from benchmarks.chaos.invariants import of_run
from benchmarks.chaos.plans import drawn, plans
from bus.rules.events import Commit, Event, PhaseCompleted, PhaseReady, PhaseStarted, RunCompleted
from bus.rules.plan import Phase
from tests.driver import BEGAN_AT, LOST, RUN, Driver

NONE = msgspec.Raw(b"null")


def recovered() -> list[Event]:
    """A run whose first attempt was lost, and whose second one completed it."""
    run = Driver(Phase("a", "do"))
    run.fail("a", LOST, cause="crashed")
    run.complete("a", instance="two")
    return [event for commit in run.commits for event in commit.events]


def commits(events: list[Event]) -> list[Commit]:
    return [Commit(RUN, f"c{place}", BEGAN_AT, place, [event]) for place, event in enumerate(events, 1)]


def found(events: list[Event], position: int = 0) -> str:
    return "; ".join(of_run(commits(events), position))


def place(events: list[Event], kind: type[Event], nth: int = 0) -> int:
    return [index for index, event in enumerate(events) if isinstance(event, kind)][nth]


def test_a_run_that_was_recovered_is_as_it_should_be() -> None:
    assert found(recovered(), position=1) == ""


def test_a_result_of_an_attempt_that_was_recovered_is_found() -> None:
    events = recovered()
    events.insert(place(events, PhaseStarted, 1), PhaseCompleted(phase="a", attempt=1, output=NONE))
    assert "a result of attempt 1 of a:None is accepted, which was superseded" in found(events)
    assert "2 results of a:None are accepted in pass 1" in found(events)


def test_a_result_that_was_accepted_twice_is_found() -> None:
    events = recovered()
    again = place(events, PhaseCompleted)
    events.insert(again, events[again])
    assert found(events) == "2 results of a:None are accepted in pass 1"


def test_a_result_of_an_attempt_nobody_had_taken_is_found() -> None:
    events = recovered()
    del events[place(events, PhaseStarted, 1)]
    assert "a result of attempt 2 of a:None is accepted, which was superseded" in found(events)


def test_an_attempt_that_was_taken_twice_is_found() -> None:
    events = recovered()
    taken = place(events, PhaseStarted, 1)
    events.insert(taken, events[taken])
    assert found(events) == "attempt 2 of a:None is taken twice"


def test_an_attempt_that_was_taken_too_late_is_found() -> None:
    events = recovered()
    events.insert(place(events, PhaseStarted, 1), events[place(events, PhaseStarted)])
    assert found(events) == "attempt 1 of a:None is taken, and is not the newest"


@pytest.mark.parametrize("kind", [PhaseReady, RunCompleted])
def test_what_happens_twice_is_found(kind: type[Event]) -> None:
    events = recovered()
    events.append(events[place(events, kind)])
    assert found(events) != ""


def test_a_run_that_has_not_ended_is_found() -> None:
    events = recovered()
    del events[place(events, RunCompleted)]
    assert found(events) == "it has not ended"


def test_a_start_that_is_not_where_it_was_acknowledged_is_found() -> None:
    assert found(recovered(), position=3) == "its start was acknowledged at 3, and is at 1"
    assert "it has started 0 times" in found(recovered()[1:])


def test_a_seed_is_always_the_same_chaos() -> None:
    assert schedule(7, 60.0, 6, 3.0) == schedule(7, 60.0, 6, 3.0)
    assert schedule(7, 60.0, 6, 3.0) != schedule(8, 60.0, 6, 3.0)
    assert drawn(7, 100) == drawn(7, 100)


def test_every_plan_of_chaos_has_as_many_phases_as_was_asked_for() -> None:
    assert {len(plan.phases) for plan in plans(10, 3.0).values()} == {10}

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bus.diagnosis import problem_of
from bus.errors import BudgetSpent, CircuitOpen, LimitReached, SettingsError
from bus.format.envelope import envelope
from bus.guards.breaker import (
    Breaker,
    BreakerClosed,
    BreakerOpened,
    BreakerProbing,
    BreakerState,
    Transition,
    abandoned,
    after,
    failed,
    probe,
    read,
    succeeded,
    trip,
    wire_type,
)
from bus.guards.window import Window
from bus.problem import Problem

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Breaker(cooldown_s=4, longest_s=20, probe_s=10)
CLOSED = BreakerState(breaker="openai")
SICK = Problem("handler_error", "ConnectionError", "transient")


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def then(state: BreakerState, event: Transition | None, at: datetime = NOW) -> BreakerState:
    assert event is not None
    return after(event, at, state.position + 1, state.breaker)


def opened(problem: Problem = SICK, chance: float = 0.0) -> BreakerState:
    return then(CLOSED, trip(CLOSED, POLICY, by="a", now=NOW, chance=chance, failures=6, calls=10, problem=problem))


def probing(state: BreakerState, at: datetime, id: str = "p") -> BreakerState:
    return then(state, probe(state, POLICY, by="a", now=at, chance=0, id=id), at)


def test_a_closed_breaker_lets_everybody_through_and_an_open_one_nobody_before_its_time() -> None:
    assert CLOSED.admits(NOW)
    state = opened()
    assert (state.status, state.retry_at, state.trips) == ("open", later(4), 1)
    assert not state.admits(later(3.9))
    with pytest.raises(CircuitOpen) as refused:
        probe(state, POLICY, by="a", now=later(3), chance=0, id="p")
    assert refused.value.retry_after_s == 1
    assert state.admits(later(4))


def test_only_one_is_let_through_half_open_and_its_success_closes() -> None:
    state = probing(opened(), later(4))
    assert (state.status, state.probe) == ("half_open", "p")
    with pytest.raises(CircuitOpen):
        probe(state, POLICY, by="b", now=later(5), chance=0, id="q")
    closed = then(state, succeeded(state, by="a", probe="p"))
    assert (closed.status, closed.trips) == ("closed", 0)


def test_each_failed_probe_doubles_the_cooldown_up_to_the_longest() -> None:
    state, at, waits = opened(), NOW, []
    for _ in range(5):
        assert state.retry_at is not None
        waits.append((state.retry_at - at).total_seconds())
        at = state.retry_at
        state = probing(state, at)
        state = then(state, failed(state, POLICY, by="a", now=at, chance=0, probe="p", problem=SICK), at)
    assert waits == [4, 8, 16, 20, 20]


def test_chance_only_makes_the_cooldown_longer_and_by_a_quarter_at_most() -> None:
    state = opened(chance=0.999)
    assert state.retry_at is not None
    assert later(4) < state.retry_at < later(5)


def test_a_service_that_says_when_to_come_back_is_believed() -> None:
    state = opened(Problem("handler_error", "busy", "transient", retry_after_s=60))
    assert state.retry_at == later(60)


def test_who_dies_while_probing_is_followed_by_another_after_its_deadline_and_the_clocks_difference() -> None:
    state = probing(opened(), later(4))
    assert not state.admits(later(15.9))
    assert state.admits(later(16))
    assert probing(state, later(16), "q").probe == "q"


def test_a_probe_that_was_given_up_can_close_but_not_open() -> None:
    state = probing(probing(opened(), later(4)), later(20), "q")
    assert failed(state, POLICY, by="a", now=later(21), chance=0, probe="p", problem=SICK) is None
    assert abandoned(state, by="a", now=later(21), probe="p") is None
    assert isinstance(succeeded(state, by="a", probe="p"), BreakerClosed)


def test_a_probe_that_proves_nothing_lets_the_next_one_try_and_does_not_count_as_failed() -> None:
    state = probing(opened(), later(4))
    state = then(state, abandoned(state, by="a", now=later(5), probe="p"), later(5))
    assert (state.status, state.trips) == ("open", 1)
    assert state.admits(later(5))


def test_what_a_person_has_opened_is_not_probed() -> None:
    state = then(CLOSED, BreakerOpened(breaker="openai", by="ann"))
    assert not state.admits(later(10**6))
    assert state.may_probe_at is None


def test_who_was_refused_comes_back_at_a_time_of_its_own() -> None:
    state = opened()
    waits = {state.refusal(POLICY, NOW, chance / 10).retry_after_s for chance in range(10)}
    assert len(waits) == 10
    assert min(waits) == 4
    assert max(waits) < 6


def test_the_newest_transition_alone_is_the_state() -> None:
    for event in (
        BreakerOpened(breaker="openai", by="a", retry_at=later(4), trips=3, reason="no"),
        BreakerProbing(breaker="openai", by="a", probe="p", until=later(9), trips=3),
        BreakerClosed(breaker="openai", by="a"),
    ):
        message = envelope(wire_type(event), event, id="1", source="/a", time=NOW)
        assert read(message, "openai", 7) == after(event, NOW, 7, "openai")
    assert read(envelope("breaker.bent.v9", {}, id="1", source="/a", time=NOW), "openai", 8) is None


@pytest.mark.parametrize(
    ("problem", "fails", "answers"),
    [
        (Problem("handler_error", "x", "transient"), True, False),
        (Problem("handler_error", "x", "dependency"), True, False),
        (Problem("timed_out", "x", "transient"), True, False),
        (Problem("handler_error", "x", "transient", status=503), True, False),
        (Problem("handler_error", "x", "transient", status=429), False, False),
        (Problem("handler_error", "x", "permanent", status=404), False, True),
        (Problem("rejected", "x", "permanent"), False, True),
        (Problem("retry_asked", "x", "transient"), False, False),
        (Problem("handed_back", "x", "transient"), False, False),
    ],
)
def test_what_counts_as_a_failure_of_the_service(problem: Problem, fails: bool, answers: bool) -> None:
    assert POLICY.is_failure(problem) == fails
    assert POLICY.is_answer(problem) == answers


@pytest.mark.parametrize(
    "wrong", [{"failures": 0}, {"failures": 1.1}, {"calls": 0}, {"cooldown_s": 0}, {"counts": ("x",)}]
)
def test_a_policy_that_can_not_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Breaker(**wrong)


def test_an_error_of_a_breaker_or_a_limit_says_when_to_try_again() -> None:
    for error, kind in (
        (CircuitOpen("x", 7.5), "dependency"),
        (LimitReached("x", 7.5, "y"), "transient"),
        (BudgetSpent("x", 7.5, "y"), "dependency"),
    ):
        problem = problem_of(error, NOW)
        assert (problem.error_class, problem.retry_after_s) == (kind, 7.5)
    wrapped = ValueError("no answer")
    wrapped.__cause__ = CircuitOpen("x", 3)
    assert problem_of(wrapped, NOW).retry_after_s == 3


def test_a_window_forgets_what_is_older_than_it() -> None:
    window = Window(10)
    window.add(100, 3, 1)
    window.add(105, 0, 2)
    assert window.totals(106) == (3, 3)
    assert window.totals(110.5) == (0, 2)
    assert window.totals(116) == (0, 0)

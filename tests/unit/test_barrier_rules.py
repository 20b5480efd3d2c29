"""The rules of a barrier: it opens for as many as were said, and again for as many."""

from __future__ import annotations

import pytest

from bus.coordination.barrier import BarrierArrived, BarrierLeft, Event, Gathering, arrive, evolve, fold
from bus.errors import Refused


def came(*parties: str, of: int = 2) -> Gathering:
    state = Gathering()
    for party in parties:
        event = arrive(state, "ready", party, of)
        assert event is not None
        state = evolve(state, event)
    return state


def left(party: str, generation: int = 1) -> BarrierLeft:
    return BarrierLeft(name="ready", generation=generation, party=party, reason="withdrew")


def test_it_opens_when_the_last_party_comes_and_the_next_one_is_of_another_generation() -> None:
    assert not came("a").is_open
    assert came("a", "b").is_open
    state = came("a", "b", "c")
    assert (state.generation, list(state.present), state.is_open) == (2, ["c"], False)


def test_a_party_counts_once() -> None:
    assert arrive(came("a"), "ready", "a", 2) is None


def test_who_left_is_not_counted_and_can_not_leave_what_has_opened() -> None:
    assert not evolve(came("a", of=2), left("a")).present
    assert evolve(came("a", "b"), left("a")).is_open
    assert evolve(came("a", "b", "c"), left("a")) == came("a", "b", "c")


def test_everybody_has_to_wait_for_as_many() -> None:
    with pytest.raises(Refused, match="2 parties, not 3"):
        arrive(came("a"), "ready", "b", 3)
    empty = evolve(came("a"), left("a"))
    assert arrive(empty, "ready", "b", 3) == BarrierArrived(name="ready", generation=1, party="b", parties=3)


def test_the_events_of_the_newest_generation_are_enough() -> None:
    events: list[Event] = []
    state = Gathering()
    for party in "abcde":
        event = arrive(state, "ready", party, 2)
        assert event is not None
        events.append(event)
        state = evolve(state, event)
    assert state.generation == 3
    assert fold(event for event in events if event.generation == 3) == state == fold(events)
    assert fold([]) == Gathering()

"""A barrier: so many parties wait for each other, and go on together; then it can be used again. Pure.

Its log tells who came and who left before it opened. It is open when the last one has come, which needs no word of its
own. Each time it opens is a generation, counted from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from bus.errors import MalformedMessage, Refused
from bus.format.envelope import Envelope
from bus.format.schemas import Catalogue

ARRIVED, LEFT = "barrier.arrived.v1", "barrier.left.v1"
MOST_PARTIES = 1_000


class _About(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    generation: int
    party: str


class BarrierArrived(_About, frozen=True):
    """A party waits until there are `parties` of them."""

    parties: int


class BarrierLeft(_About, frozen=True):
    """A party does not wait any more: its own time was over, or its process is gone."""

    reason: Literal["withdrew", "gone"]


Event = BarrierArrived | BarrierLeft
EVENTS = Catalogue()
EVENTS.add(ARRIVED, BarrierArrived)
EVENTS.add(LEFT, BarrierLeft)


def type_of(event: Event) -> str:
    """The wire type of an event."""
    return ARRIVED if isinstance(event, BarrierArrived) else LEFT


def read(message: Envelope) -> Event:
    """The event in a message. Raises MalformedMessage."""
    if message.type not in EVENTS.types:
        raise MalformedMessage(f"{message.type!r} is not an event of a barrier")
    event: Event = EVENTS.read(message.type, message.data)
    return event


class Gathering(msgspec.Struct, frozen=True):
    """The parties that wait, of the newest generation; 0: nobody ever came."""

    generation: int = 0
    parties: int = 0
    present: Mapping[str, None] = msgspec.field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """They are all there: this generation goes on, and whoever comes now is of the next."""
        return len(self.present) >= self.parties


def arrive(state: Gathering, name: str, party: str, parties: int) -> BarrierArrived | None:
    """What it means that a party comes; None: it is there already. Raises Refused if others wait for another number."""
    if state.is_open:
        return BarrierArrived(name=name, generation=state.generation + 1, party=party, parties=parties)
    if party in state.present:
        return None
    if state.present and parties != state.parties:
        raise Refused(
            f"others wait at barrier {name!r} for {state.parties} parties, not {parties}: say the same number"
        )
    return BarrierArrived(name=name, generation=state.generation, party=party, parties=parties)


def evolve(state: Gathering, event: Event) -> Gathering:
    """The gathering after an event. What does not belong to its generation changes nothing."""
    if isinstance(event, BarrierArrived):
        if event.generation == state.generation + 1 and state.is_open:
            return Gathering(event.generation, event.parties, {event.party: None})
        if event.generation == state.generation and not state.is_open:
            return Gathering(state.generation, event.parties, {**state.present, event.party: None})
        return state
    if event.generation != state.generation or state.is_open:
        return state
    rest = {party: None for party in state.present if party != event.party}
    return Gathering(state.generation, state.parties, rest)


def fold(events: Iterable[Event]) -> Gathering:
    """The gathering after the events of its newest generation, or of more."""
    state: Gathering | None = None
    for event in events:
        if state is None:
            state = Gathering(event.generation - 1)
        state = evolve(state, event)
    return state or Gathering()

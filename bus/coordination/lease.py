"""A lease: a lock, a permit of a semaphore or the lead of an election, as the log knows it. Pure.

Each has a subject of its own, with what became of it: acquired, released, lost. The position of `acquired` is the
fencing token: it only grows, and it stays the newest position of that subject for exactly as long as the lease is held.
So the server itself can check it, together with whatever else is to be stored. Renewals are no facts; they are in a
bucket (`bus.log.bucket`) whose keys end by themselves.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from bus.errors import InvalidName, MalformedMessage
from bus.format.envelope import Envelope
from bus.format.schemas import Catalogue
from bus.format.subjects import name

ACQUIRED, RELEASED, LOST = "lease.acquired.v1", "lease.released.v1", "lease.lost.v1"

Kind = Literal["lock", "leader", "permit"]
Reason = Literal["expired", "broken"]
"""Why it was lost: it was not renewed in time, or somebody ended it."""

LONGEST_TTL_S = 86_400
MOST_PERMITS = 1_000


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one holder at a time can have; `slot` is which of a semaphore's permits. Raises InvalidName."""

    kind: Kind
    name: str
    slot: int | None = None

    def __post_init__(self) -> None:
        name(self.name, self.kind)
        if (self.slot is not None) != (self.kind == "permit") or (self.slot or 0) < 0:
            raise InvalidName(f"slot {self.slot!r} of {self.kind} {self.name!r}: permits have one, from 0 on")

    @property
    def path(self) -> str:
        """Its subject's end, and its key in the bucket: `lock.deploy`, `permit.gpu.2`."""
        return f"{self.kind}.{self.name}" if self.slot is None else f"{self.kind}.{self.name}.{self.slot}"

    @classmethod
    def of(cls, path: str) -> Place:
        """Raises InvalidName."""
        kind, _, rest = path.partition(".")
        name, _, slot = rest.partition(".")
        try:
            return msgspec.convert({"kind": kind, "name": name, "slot": int(slot) if slot else None}, cls)
        except ValueError as error:
            raise InvalidName(f"{path!r} is not a lock, a permit or a lead: {error}") from error

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" if self.slot is None else f"{self.kind} {self.slot} of {self.name!r}"


class Ticket(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in the line for what somebody else has: `first` is the revision it began with, 0 if that is this one.

    `holder` is who waits, for people; within a handler, the rest says which attempt.
    """

    first: int = 0
    holder: str = ""
    run: str = ""
    phase: str = ""
    item: int | None = None
    attempt: int = 0


class _About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which place, and which lease of it: `lease` is its id, the same in all that is told of it."""

    kind: Kind
    name: str
    slot: int | None = None
    lease: str
    holder: str

    @property
    def place(self) -> Place:
        return Place(self.kind, self.name, self.slot)


class LeaseAcquired(_About, frozen=True):
    """Somebody has it from now on, for as long as it is renewed every `ttl_s` at least. Its position is the token."""

    ttl_s: int


class LeaseReleased(_About, frozen=True):
    """Its holder gave it back."""


class LeaseLost(_About, frozen=True):
    """It ended without its holder's word; `by` noticed that, or did it."""

    reason: Reason
    by: str


Event = LeaseAcquired | LeaseReleased | LeaseLost

EVENTS = Catalogue()
EVENTS.add(ACQUIRED, LeaseAcquired)
EVENTS.add(RELEASED, LeaseReleased)
EVENTS.add(LOST, LeaseLost)
_NAMES = {LeaseAcquired: ACQUIRED, LeaseReleased: RELEASED, LeaseLost: LOST}


def type_of(event: Event) -> str:
    """The wire type of an event."""
    return _NAMES[type(event)]


class Standing(msgspec.Struct, frozen=True):
    """How it stands with a place: its newest event, the position of that, and when it was."""

    event: Event
    position: int
    at: datetime

    @property
    def is_held(self) -> bool:
        """By the log; whether it is still renewed, the bucket knows."""
        return isinstance(self.event, LeaseAcquired)

    def has_ended(self, lease: str) -> bool:
        """Whether the log says of this lease that it is over."""
        return not self.is_held and self.event.lease == lease


def standing(message: Envelope, position: int) -> Standing:
    """What the newest message on a lease's subject says. Raises MalformedMessage."""
    if message.type not in EVENTS.types:
        raise MalformedMessage(f"position {position} is a {message.type!r}, and not an event of a lease")
    return Standing(EVENTS.read(message.type, message.data), position, message.time)


def about(place: Place, lease: str, holder: str) -> dict[str, Any]:
    """What every event of a lease says of it."""
    return {"kind": place.kind, "name": place.name, "slot": place.slot, "lease": lease, "holder": holder}

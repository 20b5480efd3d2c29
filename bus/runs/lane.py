"""Lanes: work with a key stands in line behind all work with the same key, in the log itself.

The key chooses one of a capability's lanes, a subject of the log. A place in it is stored before the run it belongs to,
and holds all of its beginning: whoever is handed a place without a run stores that, so nobody's death leaves work
without its place, or a place without its work. A lane is served one run after the other (`bus.worker.lanes`), each
until it has ended; keys that share a lane wait for each other.

A key is parked behind work of it that died, where its capability wants that: the dead one and what comes after it
leave the lane for a line of the key's own, so other keys go on. Who redrives or discards what died stores a word in the
lane in one batch with that, and whoever is handed it goes on where the key's own line says it stands. So what is
redriven stands in line again, before all that waits behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import msgspec

from bus.errors import MalformedMessage
from bus.format.envelope import Envelope, decode_data
from bus.rules.events import COMMIT
from bus.rules.run import RunState

PLACED = "task.placed.v1"
PARKED = "task.parked.v1"
UNPARKED = "task.unparked.v1"
RESUMED = "task.resumed.v1"
LANES = 16
"""Of each ordered capability. Who sends need not ask anybody for it, so it is the same everywhere, and stays."""
_PLACE = "place-"


class Parked(msgspec.Struct, frozen=True):
    """The run that the envelope names waits in the line of its key; all that came up to position `after` is over."""

    key: str
    after: int


class Unparked(msgspec.Struct, frozen=True):
    """All that waited in the line of a key up to position `after` is over; `waiting` says whether anything is left."""

    key: str
    after: int
    waiting: bool


class Resumed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The run that the envelope names was redriven, or with `letter` that one was discarded: its key may go on."""

    key: str
    letter: str = ""


class Row(msgspec.Struct, frozen=True):
    """How the line of a parked key stands: its newest record is at `position`, 0: none; all up to `after` is over."""

    position: int = 0
    after: int = 0
    waits: bool = False


def row_of(position: int, newest: Envelope) -> Row:
    """As the newest record of the line says. Raises MalformedMessage."""
    if newest.type == PARKED:
        return Row(position, decode_data(newest, _parked, "a parked place").after, waits=True)
    said = decode_data(newest, _unparked, "what is over of parked work")
    return Row(position, said.after, waits=said.waiting)


def placed(beginning: Envelope) -> Envelope:
    """The place of what a run's first commit begins: the same, under an id of its own."""
    return msgspec.structs.replace(beginning, type=PLACED, id=_PLACE + beginning.id)


def beginning(place: Envelope) -> Envelope:
    """The first commit of the run that has this place. Raises MalformedMessage."""
    if place.type != PLACED or place.runid is None or not place.id.startswith(_PLACE):
        raise MalformedMessage(f"{place.type!r} is not a place in a lane")
    return msgspec.structs.replace(place, type=COMMIT, id=place.id.removeprefix(_PLACE))


def lane_of(key: str) -> int:
    """The lane of a key, from 0."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % LANES


def token_of(key: str) -> str:
    """What stands for a key in a subject."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def is_resuming(before: RunState | None, after: RunState) -> bool:
    """Whether the run stands in line again with this commit: it has lost its place, or holds what comes after it."""
    return before is not None and bool(after.key) and after.passes > before.passes


def is_home(lane: int, instance: str, others: Collection[str]) -> bool:
    """Whether a lane belongs to an instance rather than to one of the others: all who know of the same agree.

    Who comes or goes changes the home of few lanes.
    """
    return all(_weight(lane, instance) >= _weight(lane, other) for other in others)


def _weight(lane: int, instance: str) -> tuple[bytes, str]:
    return hashlib.blake2b(f"{lane}/{instance}".encode(), digest_size=8).digest(), instance


_parked = msgspec.json.Decoder(Parked)
_unparked = msgspec.json.Decoder(Unparked)

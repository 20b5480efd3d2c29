"""The contract: a projection is a name, a version, a first state, and a pure fold over the log's commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from bus.events import Commit

S = TypeVar("S")


class Projection(msgspec.Struct, Generic[S], frozen=True):
    """What is true, as a function of the log.

    `fold(state, commits)` leaves the state it is given untouched and ignores commits at or before the state's
    position, so any split of the log, and any part of it read twice, ends with the same state. `version` goes up
    when the fold changes what it makes of the same commits: states kept from an older one are built again.
    """

    name: str
    version: int
    initial: Callable[[], S]
    fold: Callable[[S, Iterable[Commit]], S]

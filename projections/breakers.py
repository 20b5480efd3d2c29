"""Breakers: which are open, since when and why, and how often each has tripped."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from bus.guards.breaker import OPENED, TYPES, BreakerState, read
from bus.history.happening import Happening
from projections.projection import Projection, Rows


class Tripping(msgspec.Struct, frozen=True, gc=False):
    """How a breaker stands, and how often it has opened."""

    state: BreakerState
    opened: int = 0


def _fold(rows: Rows[Tripping], happening: Happening) -> None:
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    name = happening.subject.rpartition(".")[2].replace(":", ".")
    state = read(message, name, happening.position)
    assert state is not None, "only transitions are asked for"
    row = rows.get(name) or Tripping(state)
    rows[name] = replace(row, state=state, opened=row.opened + (message.type == OPENED))


BREAKERS: Projection[Tripping] = Projection(
    name="breakers", version=1, row=Tripping, fold=_fold, subjects=["breaker.*"], types=frozenset(TYPES)
)
"""Every circuit breaker, by its name."""

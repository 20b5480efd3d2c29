"""Locks and leaders: who has which lock, permit or lead, since when, and how it came to that."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec.structs import replace

from bus.coordination.lease import EVENTS, Kind, LeaseAcquired, LeaseLost, standing
from bus.history.happening import Happening
from projections.projection import Projection, Rows


class Lock(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A lock, a permit of a semaphore, or the lead of an election. Without a `holder` it is free.

    That is as far as the log says: one whose holder has died is held until somebody notices.

    `token` fences: it is the position at which it was acquired last. `acquired` and `lost` count how often it was, and
    `held_s` is how long it was held, all times together that are over. `ending` is how the last time ended.
    """

    kind: Kind
    name: str
    slot: int | None = None
    holder: str = ""
    since: datetime
    token: int = 0
    ttl_s: int = 0
    acquired: int = 0
    lost: int = 0
    held_s: float = 0.0
    ending: str = ""


def _fold(rows: Rows[Lock], happening: Happening) -> None:
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    newest = standing(message, happening.position)
    event, at = newest.event, newest.at
    key = event.place.path
    row = rows.get(key) or Lock(kind=event.kind, name=event.name, slot=event.slot, since=at)
    if isinstance(event, LeaseAcquired):
        rows[key] = replace(
            row,
            holder=event.holder,
            since=at,
            token=happening.position,
            ttl_s=event.ttl_s,
            acquired=row.acquired + 1,
            ending="",
        )
        return
    is_loss = isinstance(event, LeaseLost)
    rows[key] = replace(
        row,
        holder="",
        since=at,
        lost=row.lost + is_loss,
        held_s=row.held_s + max((at - row.since).total_seconds(), 0.0),
        ending=f"{event.reason}, by {event.by}" if isinstance(event, LeaseLost) else f"released by {event.holder}",
    )


LOCKS: Projection[Lock] = Projection(
    name="locks", version=1, row=Lock, fold=_fold, subjects=["lease.>"], types=frozenset(EVENTS.types)
)
"""Every lock, permit and lead there ever was, by its path: `lock.deploy`, `permit.gpu.2`, `leader.indexer`."""

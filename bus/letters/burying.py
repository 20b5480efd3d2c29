"""Burying: a message that nobody can do anything with is kept as a dead letter, whoever found it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from bus.clock import utc_now
from bus.errors import Refused, TooLarge
from bus.format.envelope import envelope
from bus.format.subjects import Subjects
from bus.log.log import Log
from bus.rules import dead

# Of what can't be decoded and is too large to be stored whole.
_KEPT_BYTES = 64 * 1024


async def bury(
    log: Log,
    subjects: Subjects,
    capability: str,
    subject: str,
    body: bytes,
    reason: str,
    *,
    limit_bytes: int,
    source: str,
    instance: str,
    agent: str,
    headers: Mapping[str, str],
    origin: int,
    stored_at: datetime,
    delivered: int,
) -> None:
    """Keep it, once, however often and by whomever it is found; of its body no more than `limit_bytes`, the most that
    a message may have. Raises BusError: it is not kept.
    """
    for kept_bytes in (limit_bytes, _KEPT_BYTES):
        letter = dead.unreadable(
            capability,
            subject,
            body,
            reason,
            instance,
            limit_bytes=kept_bytes,
            agent=agent,
            headers=headers,
            origin=origin,
            stored_at=stored_at,
            delivered=delivered,
        )
        name = dead.name_of_unreadable(letter)
        record = envelope(dead.UNREADABLE, letter, id=name, source=source, time=utc_now())
        try:
            await log.append(subjects.dead(capability), record)
        except TooLarge:
            if kept_bytes == _KEPT_BYTES:
                raise
            continue
        except Refused:
            # Whoever had it before us stored it, and ended before it was out of the way.
            pass
        return

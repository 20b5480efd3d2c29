"""The sweep: tells in the log what has ended by itself. Leases nobody renews are lost, decisions out of time decided.

Whoever wants such a lock next, or waits for such a decision, says the same; the leader says it when nobody does. What
it has read is kept in the bucket of leases, so that the next leader need not read it again.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import msgspec
import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.coordination import decision
from bus.coordination.decision import Decided, Proposed
from bus.coordination.lease import LeaseAcquired, Standing, standing
from bus.errors import MalformedMessage, NotFound
from bus.log.bucket import Bucket
from bus.log.record import Record

logger = structlog.get_logger(__name__)

_KEY = "swept"
_KEEP_BYTES = 512 * 1024
_KEEP_EVERY = 10_000


class _Held(msgspec.Struct, frozen=True):
    """A lease that has not ended by the log."""

    event: LeaseAcquired
    position: int
    at: datetime


class _Open(msgspec.Struct):
    """What is held and undecided by the log, up to a position: leases by subject, the deadlines of decisions by id."""

    position: int = 0
    leases: dict[str, _Held] = msgspec.field(default_factory=dict)
    decisions: dict[str, datetime] = msgspec.field(default_factory=dict)


_open = msgspec.json.Decoder(_Open)


class Sweep:
    """The sweeps of one term of a leader."""

    def __init__(self, client: Client, bucket: Bucket) -> None:
        self._client = client
        self._bucket = bucket
        self._open: _Open | None = None
        self._kept, self._kept_at = b"", 0
        self._silent: set[str] = set()

    async def sweep(self) -> None:
        """Look once. Raises Unavailable."""
        if self._open is None:
            self._open = await self._restored()
        await self._read(self._open)
        await self._end_leases(self._open)
        await self._settle_decisions(self._open)
        await self._keep(self._open)
        await self._bucket.tidy()

    async def _read(self, found: _Open) -> None:
        subjects = self._client.subjects
        newest = await self._client.log.last(">")
        upto = newest.position if newest is not None else 0
        async for record in self._client.log.read(subjects.leases, subjects.decisions, after=found.position, upto=upto):
            self._note(found, record)
        found.position = max(found.position, upto)

    def _note(self, found: _Open, record: Record) -> None:
        subjects = self._client.subjects
        try:
            message = record.envelope()
            if record.subject.startswith(subjects.leases.removesuffix(">")):
                found.leases.pop(record.subject, None)
                event = standing(message, record.position).event
                if isinstance(event, LeaseAcquired):
                    found.leases[record.subject] = _Held(event, record.position, message.time)
                return
            said, id = decision.read(message), subjects.decision_of(record.subject)
        except MalformedMessage:
            return  # whoever reads that subject says so
        if isinstance(said, Proposed):
            found.decisions.setdefault(id, said.deadline_at)
        elif isinstance(said, Decided):
            found.decisions.pop(id, None)

    async def _end_leases(self, found: _Open) -> None:
        if not found.leases:
            return
        alive = await self._client.leases.alive()
        silent = {each.event.lease for each in found.leases.values()} - alive
        # Twice: a server of the bucket may be late.
        for each in [each for each in found.leases.values() if each.event.lease in silent & self._silent]:
            if await self._client.leases.end(
                Standing(each.event, each.position, each.at), "expired", by=self._client.source
            ):
                logger.warning("lease lost", lease=str(each.event.place), holder=each.event.holder)
        self._silent = silent

    async def _settle_decisions(self, found: _Open) -> None:
        now = utc_now()
        for id in [id for id, deadline_at in found.decisions.items() if deadline_at <= now]:
            with suppress(NotFound):
                state = await self._client.decided(id, timeout_s=self._client.settings.request_timeout_s)
                logger.info("decided", decision=id, option=state.option)
            del found.decisions[id]

    async def _restored(self) -> _Open:
        entry = await self._bucket.get(_KEY)
        newest = await self._client.log.last(">")
        try:
            kept = _open.decode(entry.value) if entry is not None else _Open()
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _Open()
        # What is above the log is not of this log.
        return kept if newest is not None and kept.position <= newest.position else _Open()

    async def _keep(self, found: _Open) -> None:
        value = msgspec.json.encode(_Open(0, found.leases, found.decisions))
        if (value == self._kept and found.position - self._kept_at < _KEEP_EVERY) or len(value) > _KEEP_BYTES:
            return
        await self._bucket.put(_KEY, msgspec.json.encode(found))
        self._kept, self._kept_at = value, found.position

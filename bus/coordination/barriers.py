"""Barriers on the bus: parties come and leave by guarded appends, so their number is exact; the last one opens it.

A waiting party shows that it lives by a key in the bucket of leases. Who would open the barrier looks first whether
the others are still there: it must not open for a process that is gone. Who was taken for gone by mistake comes again.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Literal
from uuid import uuid4

import structlog

from bus.clock import utc_now
from bus.coordination import barrier
from bus.coordination.barrier import BarrierLeft, Event, Gathering
from bus.coordination.turns import present
from bus.errors import BusError, MalformedMessage, TimedOut
from bus.format.envelope import envelope
from bus.log.bucket import Bucket
from bus.log.log import Log, VersionConflict
from bus.log.record import Record

logger = structlog.get_logger(__name__)


class Barrier:
    """One party at a barrier."""

    def __init__(self, log: Log, bucket: Bucket, name: str, party: str, parties: int, *, source: str) -> None:
        self._log = log
        self._bucket = bucket
        self._name = name
        self._party = party
        self._parties = parties
        self._source = source
        self._subject = log.subjects.barrier(name)
        self._state, self._position = Gathering(), 0

    async def wait(self, timeout_s: float, ttl_s: int) -> int:
        """Wait for the others; returns the generation. Raises TimedOut, Refused, Unavailable."""
        try:
            async with asyncio.timeout(timeout_s), present(self._bucket, self._key(self._party), ttl_s):
                return await self._until_open()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            await self._leave()
            raise
        if await self._leave():
            return self._state.generation
        raise TimedOut(
            f"barrier {self._name!r}: {len(self._state.present)} others of {self._parties} parties came within "
            f"{timeout_s:g} s"
        )

    async def _until_open(self) -> int:
        while True:
            generation = await self._arrive()
            if await self._opens(generation):
                return generation

    async def _arrive(self) -> int:
        """Be among those present; returns the generation."""
        await self._load()
        while True:
            event = barrier.arrive(self._state, self._name, self._party, self._parties)
            if event is None:
                return self._state.generation
            if barrier.evolve(self._state, event).is_open:
                for party in await self._gone():
                    await self._say(self._left(party, "gone"))
                if not barrier.evolve(self._state, event).is_open:
                    continue
            if await self._say(event):
                return event.generation

    async def _opens(self, generation: int) -> bool:
        """Wait until it is open; False: this party was taken for gone."""
        if self._has_opened():
            return True
        async with aclosing(self._log.follow(self._subject, after=self._position)) as records:
            async for record in records:
                self._note(record)
                if self._has_opened():
                    return True
                if self._state.generation != generation or self._party not in self._state.present:
                    return False
        raise AssertionError("to follow has no end")

    async def _leave(self) -> bool:
        """Do not wait any more; True: it has opened meanwhile. What can't be told is seen by whoever comes next."""
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(self._bucket.timeout_s):
                await self._load()
                while self._party in self._state.present:
                    if self._has_opened():
                        return True
                    await self._say(self._left(self._party, "withdrew"))
        return False

    def _has_opened(self) -> bool:
        """With this party among the others."""
        return self._state.is_open and self._party in self._state.present

    async def _gone(self) -> list[str]:
        """Parties that are present by the log, and show no life."""
        alive = {entry.key for entry in await self._bucket.entries(self._key("*"))}
        return [party for party in self._state.present if self._key(party) not in alive]

    async def _say(self, event: Event) -> bool:
        """Append, and fold it; False: somebody was faster, and that was folded instead."""
        message = envelope(barrier.type_of(event), event, id=uuid4().hex, source=self._source, time=utc_now())
        try:
            self._position = await self._log.append(self._subject, message, expected=self._position)
        except VersionConflict:
            await self._load()
            return False
        self._state = barrier.evolve(self._state, event)
        return True

    async def _load(self) -> None:
        """As it stands now: the events of its newest generation, which are its last ones."""
        found: list[Event] = []
        position = 0
        async with aclosing(self._log.read_back(self._subject)) as records:
            async for record in records:
                position = position or record.position
                event = _read(record)
                if event is not None and found and event.generation < found[-1].generation:
                    break
                if event is not None:
                    found.append(event)
        self._state, self._position = barrier.fold(reversed(found)), position

    def _note(self, record: Record) -> None:
        event = _read(record)
        if event is not None:
            self._state = barrier.evolve(self._state, event)
        self._position = record.position

    def _left(self, party: str, reason: Literal["withdrew", "gone"]) -> BarrierLeft:
        return BarrierLeft(name=self._name, generation=self._state.generation, party=party, reason=reason)

    def _key(self, party: str) -> str:
        return f"barrier.{self._name}.{party}"


def _read(record: Record) -> Event | None:
    try:
        return barrier.read(record.envelope())
    except MalformedMessage as error:
        logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
        return None

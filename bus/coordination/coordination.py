"""Coordination: locks, semaphores, elections and barriers among the processes of a bus; a part of the client.

Each has the same two halves: a key in a bucket that ends by itself when its process dies, and a subject in the log,
with who got, gave back or lost it. The position of the one that counts is the token that fences what is done under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import uuid4

import msgspec

from bus.broker.connection import Connection
from bus.coordination.barrier import MOST_PARTIES
from bus.coordination.barriers import Barrier
from bus.coordination.election import Candidacy
from bus.coordination.held import Lease
from bus.coordination.keeping import held
from bus.coordination.lease import MOST_PERMITS, Kind, Place
from bus.coordination.leases import Leases
from bus.coordination.turns import Waiting, Wanted, in_line
from bus.errors import NotFound, SettingsError
from bus.format.subjects import name as checked
from bus.log.log import Log


class Holding(msgspec.Struct, frozen=True):
    """Who has what since when, with which token."""

    place: Place
    holder: str
    token: int
    since: datetime


class Coordination:
    """The verbs among processes. Waiting is first come, first served, and ends after `timeout_s` with TimedOut.

    `ttl_s` is how long a holder may be silent before it has lost what it holds: whole seconds, `lease_s` of the
    settings unless told. A holder that is killed leaves what it held to the next one within that time.
    """

    connection: Connection
    log: Log
    leases: Leases
    source: str

    @asynccontextmanager
    async def lock(
        self, name: str, *, timeout_s: float = 30.0, ttl_s: int | None = None, by: str | None = None
    ) -> AsyncIterator[Lease]:
        """Have a lock while the block runs. It is renewed meanwhile; if it is lost, the block is cancelled and
        LeaseLost is raised. With `timeout_s=0` it is had now or not at all. It can't be had twice by one process.

        Before what can't be taken back: `lease.check()`. Where it matters: `log.append(..., fence=lease)`, or the
        token, which an outside store compares.
        """
        async with self._one_of([Place("lock", name)], timeout_s, ttl_s, by) as lease:
            yield lease

    @asynccontextmanager
    async def semaphore(
        self, name: str, *, limit: int, timeout_s: float = 30.0, ttl_s: int | None = None, by: str | None = None
    ) -> AsyncIterator[Lease]:
        """Have one of `limit` permits while the block runs; `lease.slot` says which. As `lock` otherwise.

        Everybody has to say the same limit: who says less uses the first permits only.
        """
        if not 1 <= limit <= MOST_PERMITS:
            raise SettingsError(f"semaphore {name!r}: limit is 1 to {MOST_PERMITS}, not {limit!r}")
        places = [Place("permit", name, slot) for slot in range(limit)]
        async with self._one_of(places, timeout_s, ttl_s, by) as lease:
            yield lease

    @asynccontextmanager
    async def election(self, name: str, *, ttl_s: int | None = None, by: str | None = None) -> AsyncIterator[Candidacy]:
        """Stand for the lead while the block runs, and lead when it is one's turn, again if that was lost.

        The block goes on as a follower when the lead is lost; the candidacy tells of each change.
        """
        place, for_s = Place("leader", name), self.leases.ttl_s(ttl_s)
        wanted = Wanted(self.leases, self.connection, self.log.subjects, [place])
        candidacy = Candidacy(self.leases, self.log, wanted, place, by or self.leases.holder, for_s)
        try:
            async with asyncio.TaskGroup() as tasks:
                standing = [tasks.create_task(candidacy.stand()), tasks.create_task(candidacy.watch())]
                try:
                    yield candidacy
                finally:
                    for task in standing:
                        task.cancel()
        except BaseExceptionGroup as raised:
            if len(raised.exceptions) == 1:
                raise raised.exceptions[0] from None
            raise

    async def barrier(
        self,
        name: str,
        *,
        parties: int,
        timeout_s: float = 30.0,
        party: str | None = None,
        ttl_s: int | None = None,
    ) -> int:
        """Wait until `parties` of them wait here, then go on together; returns how often it has opened, from 1.

        Each call is a party of its own, unless `party` names it: then it counts once, however often it comes. Raises
        TimedOut when they do not come; Refused if others wait for another number of them.
        """
        if not 1 <= parties <= MOST_PARTIES:
            raise SettingsError(f"barrier {name!r}: parties are 1 to {MOST_PARTIES}, not {parties!r}")
        who = checked(party, "party") if party is not None else uuid4().hex
        one = Barrier(self.log, self.leases.bucket, name, who, parties, source=self.source)
        return await one.wait(timeout_s, self.leases.ttl_s(ttl_s))

    async def holdings(self) -> Sequence[Holding]:
        """Every lock, permit and lead that somebody has now. Raises Unavailable."""
        found = await asyncio.gather(*map(self._holding, await self.leases.places()))
        return [each for each in found if each is not None]

    async def in_line(self) -> Sequence[Waiting]:
        """Everybody who waits for a lock, a permit or a lead that somebody else has. Raises Unavailable."""
        return await in_line(self.leases.bucket)

    async def break_lease(self, kind: Kind, name: str, slot: int | None = None, *, by: str) -> Holding:
        """Take from its holder what it has: its token is refused from now on, and the next in line gets it.

        The holder hears of it in milliseconds, if it lives. Raises NotFound if nobody has it, Unavailable.
        """
        place = Place(kind, name, slot)
        while True:
            found = await self.leases.standing(place)
            if found is None or not found.is_held:
                raise NotFound(f"nobody has {place}")
            if await self.leases.end(found, "broken", by=by):
                return Holding(place, found.event.holder, found.position, found.at)

    async def _holding(self, place: Place) -> Holding | None:
        found = await self.leases.standing(place)
        return Holding(place, found.event.holder, found.position, found.at) if found and found.is_held else None

    @asynccontextmanager
    async def _one_of(
        self, places: Sequence[Place], timeout_s: float, ttl_s: int | None, by: str | None
    ) -> AsyncIterator[Lease]:
        wanted = Wanted(self.leases, self.connection, self.log.subjects, places)
        lease = await wanted.lease(by or self.leases.holder, self.leases.ttl_s(ttl_s), timeout_s)
        async with held(self.leases, lease):
            yield lease

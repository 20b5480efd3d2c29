"""Turns: who wants what somebody else has waits in a line, first come first served, and is woken when it is free.

A place in the line is a key in the bucket of leases, numbered by the revision of its first write and renewed while its
owner waits: who dies leaves the line within a lease. The line is only order, never safety: who takes what is decided
by the lease (`bus.coordination.leases`), so a line that is read late costs fairness and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.coordination.held import Lease
from bus.coordination.lease import ACQUIRED, Kind, Place, Ticket
from bus.coordination.leases import Leases
from bus.errors import BusError, InvalidName, MalformedMessage, NoResponders, TimedOut, Unavailable
from bus.format.envelope import decode
from bus.format.subjects import Subjects, live_copy
from bus.log.bucket import Bucket, Entry
from bus.runs.causality import served

logger = structlog.get_logger(__name__)

# A lease that ends by itself is not told by the server: the first in line looks, the others in case one of those before
# them has left.
_FIRST_LOOKS_S, _OTHERS_LOOK_S = 0.2, 1.0
_RENEWALS = 3
_tickets = msgspec.json.Decoder(Ticket)


class Waiting(msgspec.Struct, frozen=True):
    """Somebody waits for one of the places of a kind and a name; the ticket says who."""

    kind: Kind
    name: str
    ticket: Ticket


class Wanted:
    """One of `places`, all of the same kind and name, wanted by this process."""

    def __init__(self, leases: Leases, connection: Connection, subjects: Subjects, places: Sequence[Place]) -> None:
        self._leases = leases
        self._connection = connection
        self._places = places
        self._kind: Kind = places[0].kind
        self._name = places[0].name
        path = f"{self._kind}.{self._name}"
        self._line = f"line.{path}"
        self._changed: set[str] = set()
        self._before_path = live_copy(subjects.leases.removesuffix(">"))
        self._told = live_copy(subjects.lease(path)) + (".*" if self._kind == "permit" else "")

    async def lease(self, holder: str, ttl_s: int, timeout_s: float | None) -> Lease:
        """Wait for one of them, `timeout_s` at most; 0: only if one is free now, None: for ever.

        Raises TimedOut; a server that is away is waited for, too, and Unavailable raised only with `timeout_s` 0.
        """
        waits = timeout_s is None or timeout_s > 0
        try:
            if not await self._tickets() and (lease := await self._take(holder, ttl_s)) is not None:
                return lease
        except (Unavailable, NoResponders):
            if not waits:
                raise
        if not waits:
            raise await self._timed_out(0)
        lease = None
        try:
            async with asyncio.timeout(timeout_s) as bound, self._in_line(ttl_s) as turns:
                async for _ in turns:
                    lease = await self._take(holder, ttl_s)
                    if lease is not None:
                        bound.reschedule(None)
                        break
        except TimeoutError:
            raise await self._timed_out(timeout_s or 0) from None
        except BaseException:
            if lease is not None:
                await self._leases.let_go(lease)
            raise
        assert lease is not None, "turns have no end"
        return lease

    async def _take(self, holder: str, ttl_s: int) -> Lease | None:
        for place in await self._open():
            lease = await self._leases.take(place, holder, ttl_s)
            if lease is not None:
                return lease
        return None

    async def _open(self) -> Sequence[Place]:
        """Those worth a try: of many permits, those that have no key, and those told of since the last look."""
        if len(self._places) == 1:
            return self._places
        told, self._changed = self._changed, set()
        taken = {entry.key for entry in await self._leases.bucket.entries(f"{self._kind}.{self._name}.*")}
        return [place for place in self._places if place.path not in taken or place.path in told]

    @asynccontextmanager
    async def _in_line(self, ttl_s: int) -> AsyncIterator[AsyncIterator[None]]:
        """Stand in line; gives what comes each time it may be this one's turn."""
        # As if all had been taken a moment ago: what was told before this one heard of it is not known.
        taken, woken = [len(self._places)], asyncio.Event()

        def hear(message: Message) -> None:
            self._changed.add(message.subject.removeprefix(self._before_path))
            with suppress(MalformedMessage):
                taken[0] += decode(message.data).type == ACQUIRED
            woken.set()

        async def turns(own: str) -> AsyncGenerator[None, None]:
            while True:
                woken.clear()
                # Who has just taken one may still stand in the line.
                leaving, taken[0], before = taken[0], 0, 0
                try:
                    before = await self._before(own) - len(self._places) + 1
                    if before <= 0:
                        yield
                except (Unavailable, NoResponders) as error:
                    logger.info("still waiting", kind=self._kind, name=self._name, error=str(error))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_OTHERS_LOOK_S if before > leaving else _FIRST_LOOKS_S):
                        await woken.wait()
                        while taken[0] < before - leaving:
                            # It is the turn of those before.
                            woken.clear()
                            await woken.wait()

        copies = self._connection.subscribe(self._told, hear)
        unregister = self._connection.on_reconnect(woken.set)
        try:
            key = f"{self._line}.{uuid4().hex}"
            ticket = self._ticket()
            async with present(self._leases.bucket, key, ttl_s, ticket), aclosing(turns(key)) as coming:
                yield coming
        finally:
            unregister()
            copies.unsubscribe()

    def _ticket(self) -> Ticket:
        facts = served()
        if facts is None:
            return Ticket(holder=self._leases.holder)
        return Ticket(0, self._leases.holder, facts.run, facts.phase, facts.item, facts.attempt)

    async def _before(self, own: str) -> int:
        """How many wait for longer."""
        tickets = await self._tickets()
        return sum(number < tickets[own] for number in tickets.values()) if own in tickets else len(tickets)

    async def _tickets(self) -> dict[str, int]:
        return {entry.key: _number(entry) for entry in await self._leases.bucket.entries(f"{self._line}.*")}

    async def _timed_out(self, timeout_s: float) -> TimedOut:
        """With who has what was wanted."""
        what = f"{self._kind} {self._name!r} was not free" + (f" within {timeout_s:g} s" if timeout_s else "")
        try:
            async with asyncio.timeout(self._leases.bucket.timeout_s):
                found = {await self._leases.holder_of(place) for place in self._places} - {None}
        except (BusError, TimeoutError):
            return TimedOut(f"{what}; who has it can't be seen")
        return TimedOut(f"{what}: {', '.join(sorted(map(str, found))) or 'others who wait for it'} came first")


@asynccontextmanager
async def present(bucket: Bucket, key: str, ttl_s: int, ticket: Ticket | None = None) -> AsyncIterator[None]:
    """A key that is there while the block runs, and for `ttl_s` if its process dies. Its value is the ticket, with its
    first revision from the second write on."""
    there, leaving = asyncio.Event(), asyncio.Event()
    keeping = asyncio.create_task(_keep(bucket, key, ttl_s, ticket or Ticket(), there, leaving))
    try:
        await there.wait()
        if keeping.done():
            keeping.result()  # it says why not
        yield
    finally:
        leaving.set()
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(bucket.timeout_s):
                # What is on its way would be written behind what is removed here, and stand there for `ttl_s`.
                await asyncio.wait({keeping})
                entry = await bucket.get(key)
                if entry is not None:
                    await bucket.drop(entry.revision)
        keeping.cancel()
        await asyncio.wait({keeping})


async def in_line(bucket: Bucket) -> list[Waiting]:
    """Everybody who waits for what somebody else has. Raises Unavailable."""
    found: list[Waiting] = []
    for entry in await bucket.entries("line.>"):
        with suppress(InvalidName):
            _, kind, name, *_ = entry.key.split(".")
            place = Place.of(f"{kind}.{name}.0" if kind == "permit" else f"{kind}.{name}")
            found.append(Waiting(place.kind, place.name, _ticket_in(entry)))
    return found


async def _keep(
    bucket: Bucket, key: str, ttl_s: int, ticket: Ticket, there: asyncio.Event, leaving: asyncio.Event
) -> None:
    try:
        first = await _put(bucket, key, msgspec.json.encode(ticket), ttl_s)
    finally:
        there.set()
    again = msgspec.json.encode(msgspec.structs.replace(ticket, first=first))
    while not leaving.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(ttl_s / _RENEWALS):
                await leaving.wait()
                return
        await _put(bucket, key, again, ttl_s)


async def _put(bucket: Bucket, key: str, value: bytes, ttl_s: int) -> int:
    """Insists: whoever waits for it has a bound of its own."""
    while True:
        try:
            return await bucket.put(key, value, ttl_s=ttl_s)
        except (Unavailable, NoResponders) as error:
            logger.info("not written yet", key=key, error=str(error))
            await asyncio.sleep(_FIRST_LOOKS_S)


def _number(entry: Entry) -> int:
    """Its first revision, which every later write repeats."""
    return _ticket_in(entry).first or entry.revision


def _ticket_in(entry: Entry) -> Ticket:
    try:
        return _tickets.decode(entry.value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Ticket()  # anybody may have written it: it is in line, and says nothing of itself

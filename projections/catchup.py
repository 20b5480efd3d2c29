"""Catching up: a projection's rows in memory, from the log, as of a position or live. Whoever wants to keep them stores
them (`projections.runner`)."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress

import structlog

from bus.client import Client
from bus.errors import BusError
from bus.format.subjects import Subjects
from bus.history.feed import read
from bus.log.record import Record
from projections.projection import Projection, R, View, fold

logger = structlog.get_logger(__name__)

_BATCH = 1_000
_AHEAD = 2_000
_AHEAD_BYTES = 8 * 2**20


async def build(client: Client, projection: Projection[R], upto: int | None = None) -> View[R]:
    """The rows as of now, or as of a position of the log, that one included. Raises Unavailable."""
    view: View[R] = View()
    batch: list[Record] = []
    async with aclosing(client.log.read(*seen_by(projection, client.subjects), upto=upto)) as records:
        async for record in records:
            batch.append(record)
            if len(batch) == _BATCH:
                view = _folded(projection, view, batch)
                batch.clear()
    return _folded(projection, view, batch)


async def follow(client: Client, projection: Projection[R]) -> AsyncGenerator[View[R], None]:
    """The rows as of now, then as the log goes on.

    What arrives while the consumer is busy is folded together: each view is the newest there is. Never ends by
    itself; a lost line is waited for. Raises Unavailable if the log can't be read at the start. Close it
    (`contextlib.aclosing`), or it goes on reading.
    """
    view = await build(client, projection)
    yield view
    records = client.log.follow(*seen_by(projection, client.subjects), after=view.position)
    async with ahead(records) as arriving:
        while True:
            view = _folded(projection, view, await arriving.take())
            yield view


def seen_by(projection: Projection[R], subjects: Subjects) -> list[str]:
    """The subjects a projection wants, in this namespace."""
    return [f"{subjects.namespace}.{subject}" for subject in projection.subjects]


class _Collector:
    """The garbage collector of this process, which is off as long as anybody wants it to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._was_on = False

    @contextmanager
    def off(self) -> Iterator[None]:
        """Folding makes much that lives as long as a batch, and no circles: looking for them took a quarter of the
        time."""
        with self._lock:
            if not self._wanted:
                self._was_on = gc.isenabled()
                gc.disable()
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if not self._wanted and self._was_on:
                    gc.enable()


uncollected = _Collector().off


def _folded(projection: Projection[R], view: View[R], records: Sequence[Record]) -> View[R]:
    with uncollected():
        after = fold(projection, view, (each for record in records for each in read(record)))
    for aside in after.asides[len(view.asides) :]:
        logger.warning("set aside", projection=projection.name, position=aside.position, reason=aside.reason)
    return after


@asynccontextmanager
async def ahead(records: AsyncGenerator[Record, None], most: int | None = None) -> AsyncIterator[Ahead]:
    """Read records ahead of whoever takes them: at most so many, 2,000 unless told."""
    reading = Ahead(records, most or _AHEAD)
    try:
        yield reading
    finally:
        reading.pump.cancel()
        with suppress(asyncio.CancelledError, BusError):
            await reading.pump


class Ahead:
    """What has been read and nobody has taken yet: so many records and 8 MiB at most, then the reading waits."""

    def __init__(self, records: AsyncGenerator[Record, None], most: int) -> None:
        self._most = most
        self._records: list[Record] = []
        self._size_bytes = 0
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.pump = asyncio.create_task(self._pump(records))
        # A pump that ends wakes the taker too, who then raises what it raised.
        self.pump.add_done_callback(lambda _: self._woken.set())

    async def take(self) -> list[Record]:
        """Everything there is: at least one record, or none if there will be none. Raises what the log raises."""
        await self._woken.wait()
        if not self._records:
            self.pump.result()
        taken, self._records, self._size_bytes = self._records, [], 0
        self._room.set()
        if not self.pump.done():
            self._woken.clear()
        return taken

    async def _pump(self, records: AsyncGenerator[Record, None]) -> None:
        async with aclosing(records):
            async for record in records:
                self._records.append(record)
                self._size_bytes += len(record.body)
                self._woken.set()
                if len(self._records) >= self._most or self._size_bytes >= _AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()

"""Catching up: a projection's state from the log, as of a position or live. The only part here that waits.

Whoever may publish on a run's subject can put anything there. What is not a commit of that run is counted and logged,
and the projection goes on after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import structlog

from bus.client import Client
from bus.errors import BusError, MalformedMessage
from bus.events import Commit
from bus.ledger import commit_in
from bus.record import Record
from bus.subjects import Subjects
from projections.projection import Projection, S

logger = structlog.get_logger(__name__)

_BATCH = 1_000


async def build(client: Client, projection: Projection[S], upto: int | None = None) -> S:
    """The state as of now, or as of a position of the log, that one included. Raises Unavailable."""
    state, _ = await _build(client, projection, _Reader(client.subjects), upto)
    return state


async def follow(client: Client, projection: Projection[S]) -> AsyncGenerator[tuple[S, int], None]:
    """The state as of now with the position of the last record in it (0: there is none), then as the log goes on.

    What arrives while the consumer is busy is folded together: each state is the newest there is. Never ends by
    itself; a lost line is waited for. Raises Unavailable if the log can't be read at the start. Close it
    (`contextlib.aclosing`), or it goes on reading.
    """
    reader = _Reader(client.subjects)
    state, position = await _build(client, projection, reader, None)
    yield state, position
    async with _arrivals(client, after=position) as arrivals:
        while True:
            records = await arrivals.take()
            state = projection.fold(state, reader.commits(records))
            position = records[-1].position
            yield state, position


async def _build(client: Client, projection: Projection[S], reader: _Reader, upto: int | None) -> tuple[S, int]:
    state, position = projection.initial(), 0
    batch: list[Record] = []
    async with aclosing(client.log.read(client.subjects.runs, upto=upto)) as records:
        async for record in records:
            batch.append(record)
            position = record.position
            if len(batch) == _BATCH:
                state = projection.fold(state, reader.commits(batch))
                batch.clear()
    return projection.fold(state, reader.commits(batch)), position


class _Reader:
    """Turns records into commits. `unreadable` counts those that are none."""

    def __init__(self, subjects: Subjects) -> None:
        self.unreadable = 0
        self._subjects = subjects

    def commits(self, records: list[Record]) -> list[Commit]:
        return [found for record in records if (found := self._commit(record)) is not None]

    def _commit(self, record: Record) -> Commit | None:
        try:
            return commit_in(self._subjects.run_of(record.subject), record)
        except MalformedMessage as error:
            self._skip(record, str(error))
            return None

    def _skip(self, record: Record, reason: str) -> None:
        self.unreadable += 1
        logger.warning(
            "unreadable record",
            position=record.position,
            subject=record.subject,
            reason=reason,
            unreadable=self.unreadable,
        )


@asynccontextmanager
async def _arrivals(client: Client, *, after: int) -> AsyncIterator[_Arrivals]:
    arrivals = _Arrivals(client, after)
    try:
        yield arrivals
    finally:
        arrivals.pump.cancel()
        with suppress(asyncio.CancelledError, BusError):
            await arrivals.pump


class _Arrivals:
    """What the log has brought and nobody has taken yet: at most `_BATCH` records, then the log waits."""

    def __init__(self, client: Client, after: int) -> None:
        self._records: list[Record] = []
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.pump = asyncio.create_task(self._pump(client, after))
        # A pump that breaks wakes the taker too, who then raises what it raised.
        self.pump.add_done_callback(lambda _: self._woken.set())

    async def take(self) -> list[Record]:
        """Everything there is, at least one record. Raises what the log raises."""
        await self._woken.wait()
        if not self._records:
            self.pump.result()
        taken, self._records = self._records, []
        self._room.set()
        if not self.pump.done():
            self._woken.clear()
        return taken

    async def _pump(self, client: Client, after: int) -> None:
        async with aclosing(client.log.follow(client.subjects.runs, after=after)) as records:
            async for record in records:
                self._records.append(record)
                self._woken.set()
                if len(self._records) >= _BATCH:
                    self._room.clear()
                await self._room.wait()

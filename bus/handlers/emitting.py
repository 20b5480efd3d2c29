"""Emitting: partial results of an attempt on their way into the log, a few milliseconds' worth in one record.

They stand on a subject of their own beside the run's commits, whose version they would otherwise move with every word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import msgspec

from bus.clock import utc_now
from bus.errors import BusError
from bus.format.envelope import envelope
from bus.handlers.context import SAID
from bus.log.log import Log
from bus.messages.parts import PARTS, Parts
from bus.registry.presence import Held
from bus.runs.steering import as_json

_LINGER_S = 0.005
_MOST = 500
_MOST_BYTES = 256 * 1024


class Emitter:
    """Stores what one attempt emits. `begun` says whether the log has the run, and is awaited first."""

    def __init__(
        self,
        log: Log,
        held: Held,
        *,
        source: str,
        correlation: str,
        causation: str | None,
        begun: Callable[[], Awaitable[bool]],
    ) -> None:
        self._log = log
        self._held = held
        self._source = source
        self._correlation = correlation
        self._causation = causation
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._chunks: list[msgspec.Raw] = []
        self._size_bytes = 0
        self._count = 0
        self._turn = asyncio.Lock()
        self._due: asyncio.Task[None] | None = None
        self._failed: BusError | None = None

    def emit(self, chunk: object) -> Awaitable[None]:
        """Take a chunk; in a thread, wait until it is taken.

        Raises MalformedMessage, and Unavailable if what was taken before could not be stored.
        """
        raw = as_json(chunk)
        try:
            in_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            in_loop = False
        if in_loop:
            return self._take(raw)
        asyncio.run_coroutine_threadsafe(self._take(raw), self._loop).result()
        return SAID

    async def flush(self) -> None:
        """Wait until all is stored. Raises TooLarge, Unavailable."""
        if self._count or self._chunks:
            await self._store()
        if self._failed is not None:
            raise self._failed

    async def _take(self, raw: msgspec.Raw) -> None:
        if self._failed is not None:
            raise self._failed
        self._chunks.append(raw)
        self._size_bytes += len(raw)
        if len(self._chunks) >= _MOST or self._size_bytes >= _MOST_BYTES:
            await self._store()
        elif self._due is None or self._due.done():
            self._due = self._loop.create_task(self._store_soon())

    async def _store_soon(self) -> None:
        await asyncio.sleep(_LINGER_S)
        await self._store()

    async def _store(self) -> None:
        """Store what there is. What goes wrong is told to who emits more, and to who waits for all of it."""
        async with self._turn:
            if not self._chunks or self._failed is not None:
                return
            if not await self._begun():
                # The log gives the attempt to somebody else: nobody wants this.
                self._chunks = []
                return
            chunks, self._chunks, self._size_bytes = self._chunks, [], 0
            held = self._held
            message = envelope(
                PARTS,
                Parts(held.attempt, self._count, chunks),
                id=uuid4().hex,
                source=self._source,
                time=utc_now(),
                correlationid=self._correlation,
                causationid=self._causation,
                runid=held.run,
                phase=held.phase,
                attempt=held.attempt,
            )
            self._count += len(chunks)
            try:
                await self._log.append(self._log.subjects.part(held.run, held.phase, held.item), message)
            except BusError as error:
                self._failed = error

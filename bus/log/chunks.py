"""The chunks of objects: bytes of any size as messages on a subject of their own, in order.

Each upload has a subject of its own, so one that was broken off is in nobody's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import datetime
from secrets import token_hex

from bus.broker.connection import Connection
from bus.errors import BusError, Unavailable
from bus.log.reading import Reader
from bus.log.streams import info, purge, store

_CHUNK_BYTES = 256 * 1024
# Of all uploads together: 2 MiB on their way keep the server busy, and let other messages through in between.
_ON_THE_WAY = 8


class Chunks:
    """The chunks in one bucket; an upload is known by its nuid."""

    def __init__(self, connection: Connection, bucket: str, timeout_s: float, replicas: int) -> None:
        self._connection = connection
        self._stream = f"OBJ_{bucket}"
        self._prefix = f"$O.{bucket}.C."
        self._timeout_s = timeout_s
        self._reader = Reader(connection, self._stream, timeout_s=timeout_s, replicas=replicas)
        self._line = asyncio.Semaphore(_ON_THE_WAY)

    @property
    def size_bytes(self) -> int:
        """How large each is, apart from the last of an upload."""
        return min(_CHUNK_BYTES, self._connection.max_payload // 2)

    async def upload(self, content: bytes) -> str:
        """Store them all, each acknowledged; returns the nuid. What a failed upload leaves is removed if possible.

        Raises Unavailable, NoResponders, Misconfigured.
        """
        nuid = token_hex(11)
        try:
            failure = await self._send_all(self._prefix + nuid, content)
        except BaseException:
            await self._give_up(nuid)
            raise
        if failure is not None:
            await self._give_up(nuid)
            raise failure
        return nuid

    async def read(self, nuid: str) -> AsyncGenerator[bytes, None]:
        """Those of an upload, in order. Raises Unavailable."""
        async with aclosing(self._reader.read(self._prefix + nuid)) as chunks:
            async for chunk in chunks:
                yield chunk.body

    async def began_at(self, nuid: str) -> datetime | None:
        """When the first came, by the server's clock; None if there is none."""
        first = await self._reader.first(self._prefix + nuid)
        return first.stored_at if first is not None else None

    async def ended_at(self, nuid: str) -> datetime | None:
        """When the newest came, by the server's clock; None if there is none."""
        newest = await self._reader.last(self._prefix + nuid)
        return newest.stored_at if newest is not None else None

    async def count(self) -> dict[str, int]:
        """How many there are of each upload, those that became no object included. Raises NotFound: no bucket."""
        there = await info(self._connection, self._stream, self._timeout_s, subjects=f"{self._prefix}*")
        return {subject.removeprefix(self._prefix): count for subject, count in there.subjects.items()}

    async def remove(self, nuid: str) -> None:
        """Raises Unavailable, NotFound: no bucket."""
        await purge(self._connection, self._stream, self._prefix + nuid, self._timeout_s)

    async def _send_all(self, subject: str, content: bytes) -> BusError | None:
        """Send them all, several at a time; returns the first failure, when nothing is under way any more."""
        size = self.size_bytes
        positions = [0] * -(-len(content) // size)
        failures: list[BusError] = []

        async def send(number: int) -> None:
            # All go through one line, one after the other, and so they are stored in order.
            async with self._line:
                if failures:
                    return
                try:
                    chunk = content[number * size : (number + 1) * size]
                    positions[number] = await store(self._connection, subject, chunk, timeout_s=self._timeout_s)
                except BusError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for number in range(len(positions)):
                group.create_task(send(number))
        if failures:
            return failures[0]
        in_order = positions == sorted(positions)
        return None if in_order else Unavailable(f"the chunks on {subject!r} were not stored in the order they have")

    async def _give_up(self, nuid: str) -> None:
        # A disk that is full would only get fuller by tries; what can't be removed now is found by the collection.
        with suppress(BusError):
            await self.remove(nuid)

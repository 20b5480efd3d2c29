"""A bucket: small values under keys, shared by all processes, as every NATS client knows it (KV).

Nothing is believed because it was read there: what counts is a write that the server took at the revision expected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

import msgspec

from bus.connection import Connection
from bus.errors import BusError, NoResponders, NotFound, Unavailable
from bus.reading import Reader
from bus.streams import info, remove, store


class Entry(msgspec.Struct, frozen=True):
    """What a key holds. `revision` grows with every write to the bucket, whichever key it is for."""

    key: str
    value: bytes
    revision: int


class Bucket:
    """One bucket, over one connection. `set_up` makes it on the server, when it is first written to."""

    def __init__(
        self, connection: Connection, name: str, *, set_up: Callable[[], Awaitable[None]], timeout_s: float
    ) -> None:
        self._connection = connection
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."
        self._reader = Reader(connection, self._stream, timeout_s=timeout_s)
        self.set_up = set_up
        self.timeout_s = timeout_s

    async def put(self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None) -> int:
        """Write a key, for `ttl_s` whole seconds or for ever; returns its revision.

        `expected` is the revision the caller knows, 0 for none. Raises `bus.streams.Moved` if it is another one;
        Unavailable: it may have been written.
        """
        headers: dict[str, str] = {}
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{ttl_s}s"
        try:
            return await self._store(key, value, headers)
        except NoResponders:
            await self.set_up()
        try:
            return await self._store(key, value, headers)
        except NoResponders:
            raise Unavailable(f"{self._stream} does not answer: its servers are away") from None

    async def get(self, key: str) -> Entry | None:
        """What the key holds, as some server of the stream has it: it may be late. Raises Unavailable."""
        try:
            record = await self._reader.last(self._prefix + key)
        except Unavailable:
            await self._must_be_missing()
            return None
        return Entry(key, record.body, record.position) if record is not None else None

    async def entries(self, keys: str) -> Sequence[Entry]:
        """What all keys hold that a filter matches, by revision. Raises Unavailable."""
        found: list[Entry] = []
        try:
            async with aclosing(self._reader.read(self._prefix + keys)) as records:
                async for record in records:
                    found.append(Entry(record.subject.removeprefix(self._prefix), record.body, record.position))
        except Unavailable:
            await self._must_be_missing()
            return []
        return found

    async def drop(self, revision: int) -> None:
        """Remove what was written with this revision, unless the key was written again. Best effort: it ends anyway."""
        with suppress(BusError):
            await remove(self._connection, self._stream, revision, self.timeout_s)

    async def _must_be_missing(self) -> None:
        """No answer means that nothing is there only if nobody has ever written here. Raises Unavailable."""
        try:
            await info(self._connection, self._stream, self.timeout_s)
        except NotFound:
            return
        raise Unavailable(f"{self._stream} does not answer: its servers are away or busy")

    async def _store(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        subject = self._prefix + key
        return await store(self._connection, subject, value, headers=headers, timeout_s=self.timeout_s)

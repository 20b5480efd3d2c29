"""A bucket: small values under keys, shared by all processes, as every NATS client knows it (KV).

Nothing is believed because it was read there: what counts is a write that the server took at the revision expected.
Nor that the server ends what nobody renews: after a crash it may have forgotten to, for ever. So whoever has seen a key
unchanged for longer than it was to live, by its own clock, takes it for gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.errors import BusError, NoResponders, NotFound, Unavailable
from bus.log.reading import Reader
from bus.log.record import Record
from bus.log.streams import ensure_stream, info, remove, store

logger = structlog.get_logger(__name__)

_TTL = "Nats-TTL"
# The server ends what is over once a second or so.
_SERVER_S = 2.0
_WATCHED = 10_000


class Entry(msgspec.Struct, frozen=True):
    """What a key holds. `revision` grows with every write to the bucket, whichever key it is for.

    `is_over`: it should have ended, and is still there.
    """

    key: str
    value: bytes
    revision: int
    is_over: bool = False


class Bucket:
    """One bucket, over one connection. It is made on the server, as `config` says, when it is first written to."""

    def __init__(self, connection: Connection, name: str, config: dict[str, Any], *, timeout_s: float) -> None:
        self._connection = connection
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."
        self._reader = Reader(connection, self._stream, timeout_s=timeout_s)
        self._config = config
        self.timeout_s = timeout_s
        # Which revision of a key was seen first when, by this process's clock.
        self._seen: dict[str, tuple[int, float]] = {}

    async def put(self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None) -> int:
        """Write a key, for `ttl_s` whole seconds or for ever; returns its revision.

        `expected` is the revision the caller knows, 0 for none. Raises `Moved` if it is another one;
        Unavailable: it may have been written.
        """
        headers: dict[str, str] = {}
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        if ttl_s is not None:
            headers[_TTL] = f"{ttl_s}s"
        try:
            return await self._store(key, value, headers)
        except NoResponders:
            await ensure_stream(self._connection, self._config, self.timeout_s)
        try:
            return await self._store(key, value, headers)
        except NoResponders:
            raise Unavailable(f"{self._stream} does not answer: its servers are away") from None

    async def get(self, key: str) -> Entry | None:
        """What the key holds, as some server of the stream has it: it may be late. Raises Unavailable."""
        try:
            record = await self._reader.last(self._prefix + key)
        except Unavailable:
            if await self._is_missing():
                return None
            record = await self._reader.last(self._prefix + key)
        return self._entry(record) if record is not None else None

    async def entries(self, keys: str) -> Sequence[Entry]:
        """What all keys hold that a filter matches and that are not over, by revision. Raises Unavailable."""
        return [each for each in await self._all(keys) if not each.is_over]

    async def tidy(self) -> None:
        """Remove every lease and ticket that should have ended, and is still there. Raises Unavailable."""
        for each in await self._all("*.>"):
            if each.is_over:
                logger.warning("ended in the server's place", key=each.key, revision=each.revision)
                await self.drop(each.revision)

    async def drop(self, revision: int) -> None:
        """Remove what was written with this revision, unless the key was written again. Best effort: it ends anyway."""
        with suppress(BusError):
            await remove(self._connection, self._stream, revision, self.timeout_s)

    async def _all(self, keys: str) -> Sequence[Entry]:
        try:
            return await self._read(keys)
        except Unavailable:
            return [] if await self._is_missing() else await self._read(keys)

    async def _read(self, keys: str) -> Sequence[Entry]:
        async with aclosing(self._reader.read(self._prefix + keys)) as records:
            return [self._entry(record) async for record in records]

    def _entry(self, record: Record) -> Entry:
        key = record.subject.removeprefix(self._prefix)
        return Entry(key, record.body, record.position, self._is_over(key, record))

    def _is_over(self, key: str, record: Record) -> bool:
        """Whether it has been unchanged here for longer than it was to live."""
        ttl = Message("", b"", head=record.head).headers.get(_TTL, "").removesuffix("s")
        if not ttl.isdigit():
            return False
        now = monotonic()
        revision, since = self._seen.get(key, (0, now))
        if revision != record.position:
            self._seen.pop(key, None)
            self._seen[key] = record.position, now
            while len(self._seen) > _WATCHED:
                # What was not written for longest; if it is asked for again, its time is counted anew.
                del self._seen[next(iter(self._seen))]
            return False
        return now - since > int(ttl) + _SERVER_S

    async def _is_missing(self) -> bool:
        """Whether nobody has ever written here. It may have been made since it did not answer. Raises Unavailable."""
        try:
            await info(self._connection, self._stream, self.timeout_s)
        except NotFound:
            return True
        return False

    async def _store(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        subject = self._prefix + key
        return await store(self._connection, subject, value, headers=headers, timeout_s=self.timeout_s)

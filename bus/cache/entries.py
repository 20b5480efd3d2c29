"""The entries of the cache, in a stream of their own.

Each entry stands there twice: under its key, to be found again, and at its place in the plan, to tell what has changed
since. All of it is a hint: losing it costs time, and what somebody forges there leads to nothing in the log.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from datetime import datetime
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.cache.cache import CACHED, FORGOTTEN, CacheForgotten, Entry
from bus.clock import utc_now
from bus.errors import MalformedMessage, NoResponders, NotFound, Unavailable
from bus.format.envelope import CONTENT_TYPE, decode, decode_data, encode, envelope
from bus.log.layout import cache_config
from bus.log.log import Log
from bus.log.reading import Reader
from bus.log.record import Record
from bus.log.streams import Moved, ensure_stream, info, purge, store
from bus.settings import Settings

logger = structlog.get_logger(__name__)

_entry = msgspec.json.Decoder(Entry)


class Entries:
    """Those of one namespace, over one connection. They own nothing that has to be closed."""

    def __init__(self, connection: Connection, log: Log, settings: Settings, *, source: str) -> None:
        self._connection = connection
        self._log = log
        self._settings = settings
        self._source = source
        self._subjects = log.subjects
        self._reader = Reader(connection, self._subjects.cache_stream, timeout_s=settings.request_timeout_s)
        self._is_there = False

    async def is_there(self) -> bool:
        """Whether anything was ever kept here. Raises Unavailable."""
        if not self._is_there:
            try:
                await info(self._connection, self._subjects.cache_stream, self._settings.request_timeout_s)
            except NotFound:
                return False
            self._is_there = True
        return True

    async def under(self, capability: str, key: str) -> Entry | None:
        """What was computed under a key last. Raises Unavailable."""
        entry = await self._last(self._subjects.cached(capability, key))
        return entry if entry is not None and (entry.capability, entry.key) == (capability, key) else None

    async def at(self, capability: str, plan: str, phase: str, item: int | None) -> Entry | None:
        """What a capability has computed last at a place of a plan. Raises Unavailable."""
        return await self._last(self._subjects.cached_at(capability, plan, phase, item))

    async def put(self, entry: Entry, plan: str, now: datetime) -> None:
        """Raises Unavailable, Misconfigured: then it is not found again, and that is all."""
        message = envelope(CACHED, entry, id=uuid4().hex, source=self._source, time=now, runid=entry.source.run)
        place = self._subjects.cached_at(entry.capability, plan, entry.source.phase, entry.source.item)
        # At its place without an end: it tells what has changed since, also when it can't be used any more.
        until = {}
        if entry.expires_at is not None:
            until = {"Nats-TTL": f"{max(1, math.ceil((entry.expires_at - now).total_seconds()))}s"}
        await asyncio.gather(
            self._store(self._subjects.cached(entry.capability, entry.key), encode(message), until),
            self._store(place, encode(message), {}),
        )

    async def all(self, capability: str | None = None) -> AsyncGenerator[Entry, None]:
        """Everything that can be found, or that of one capability; oldest first. Raises Unavailable."""
        if not await self.is_there():
            return
        subject = self._subjects.cached(capability) if capability is not None else self._subjects.cached_of_all
        async for record in self._reader.read(subject):
            entry = _read(record)
            if entry is not None and record.subject == self._subjects.cached(entry.capability, entry.key):
                yield entry

    async def forget(self, capability: str, *, by: str, key: str = "") -> int:
        """Let what is cached of a capability, or under one key, not be found any more; returns how many entries.

        It is in the log who said so. Raises NotFound if there is none, Unavailable.
        """
        found = [entry.key async for entry in self.all(capability) if key in ("", entry.key)]
        if not found:
            raise NotFound(f"nothing of {capability!r} is cached" + (f" under {key}" if key else ""))
        said = CacheForgotten(by, capability, key)
        message = envelope(FORGOTTEN, said, id=uuid4().hex, source=self._source, time=utc_now())
        await self._log.append(self._subjects.ops("cache"), message)
        subject = self._subjects.cached(capability, key or "*")
        return await purge(self._connection, self._subjects.cache_stream, subject, self._settings.request_timeout_s)

    async def _last(self, subject: str) -> Entry | None:
        if not await self.is_there():
            return None
        record = await self._reader.last(subject)
        return _read(record) if record is not None else None

    async def _store(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        timeout_s, headers = self._settings.request_timeout_s, {"Content-Type": CONTENT_TYPE, **headers}
        try:
            await store(self._connection, subject, body, headers=headers, timeout_s=timeout_s)
        except NoResponders:
            # A worker makes the stream when it begins to serve; somebody has removed it since.
            await ensure_stream(
                self._connection,
                cache_config(self._subjects, self._settings.replicas),
                self._settings.request_timeout_s,
            )
            await store(self._connection, subject, body, headers=headers, timeout_s=timeout_s)
        except Moved as error:
            raise Unavailable(f"{subject!r} was not stored") from error


def _read(record: Record) -> Entry | None:
    """The entry in a record, or none, and that is said: anybody may write there."""
    try:
        return decode_data(decode(record.body), _entry, "an entry of the cache")
    except MalformedMessage as error:
        logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
        return None

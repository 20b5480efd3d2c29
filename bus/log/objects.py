"""An object store: bytes of any size under a name, verified by their hash.

Laid out as every NATS client and the `nats` tool know it (ADR-20): chunks, and one message about each object. An object
is there once that message is. Names say what they hold, so an object is never written again with other bytes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.errors import NoResponders, NotFound, PayloadLost, Unavailable
from bus.format.subjects import Subjects
from bus.log.chunks import Chunks
from bus.log.layout import payloads_config
from bus.log.reading import Reader
from bus.log.record import Record
from bus.log.streams import Moved, ensure_stream, info, purge, store
from bus.settings import Settings

logger = structlog.get_logger(__name__)

_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the store says of an object; the names are the standard's. `nuid` names the subject of its chunks."""

    name: str
    bucket: str = ""
    nuid: str = ""
    size: int = 0
    chunks: int = 0
    digest: str | None = None
    deleted: bool = False
    metadata: dict[str, str] | None = None
    options: dict[str, object] | None = None


class Found(msgspec.Struct, frozen=True):
    """An object as it stands: `position` and `at` are those of the newest message about it."""

    meta: Meta
    position: int
    at: datetime


_meta = msgspec.json.Decoder(Meta)


class Objects:
    """The bucket of one namespace over one connection. It owns nothing that has to be closed."""

    def __init__(self, connection: Connection, subjects: Subjects, settings: Settings) -> None:
        self._connection = connection
        self._subjects = subjects
        self._settings = settings
        self._timeout_s = settings.request_timeout_s
        self._is_set_up = False
        self.bucket = subjects.payloads_bucket
        self.stream = f"OBJ_{self.bucket}"
        self._reader = Reader(connection, self.stream, timeout_s=self._timeout_s, replicas=settings.replicas)
        self.chunks = Chunks(connection, self.bucket, self._timeout_s, settings.replicas)

    async def put(self, name: str, content: bytes, metadata: Mapping[str, str]) -> None:
        """Store `content`; what is there under this name already only becomes young again, with this metadata.

        A try that fails is repeated as a whole for `append_timeout_s`, then Unavailable is raised; Misconfigured if
        the server refuses it, for want of space for example.
        """
        deadline = time.monotonic() + self._settings.append_timeout_s
        pause_s = _PAUSE_S
        while True:
            try:
                return await self._put(name, content, dict(metadata))
            except (Unavailable, NoResponders, NotFound, Moved) as error:
                reason = error
                # The bucket may be what is missing.
                self._is_set_up = False
            if time.monotonic() + pause_s > deadline:
                limit_s = self._settings.append_timeout_s
                raise Unavailable(f"object {name} was not stored within {limit_s:g} s: {reason}") from reason
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def get(self, name: str, *, limit_bytes: int) -> bytes:
        """What was stored under `name`, verified. Raises PayloadLost: not there, damaged, or larger; Unavailable."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return await self._get(name, limit_bytes)
            except PayloadLost:
                # Who may not ask the leader may be answered by a copy that is behind the one that has acknowledged.
                if self._settings.replicas == 1 or time.monotonic() + _PAUSE_S > deadline:
                    raise
                await asyncio.sleep(_PAUSE_S)

    async def all(self) -> AsyncGenerator[Found, None]:
        """Every object, and what is left of removed ones. What is no object's description is said, and left out."""
        if not await self.is_there():
            return
        async with aclosing(self._reader.read(f"$O.{self.bucket}.M.*")) as records:
            async for record in records:
                try:
                    yield _found(record)
                except PayloadLost as error:
                    logger.warning("object set aside", bucket=self.bucket, subject=record.subject, error=str(error))

    async def remove(self, found: Found) -> bool:
        """Remove an object, unless somebody has put it again since it was `found`: then False."""
        gone = msgspec.structs.replace(found.meta, deleted=True, size=0, chunks=0, digest="")
        try:
            position = await self._say(gone, found.position)
        except Moved:
            return False
        await self.chunks.remove(gone.nuid)
        await self.forget(msgspec.structs.replace(found, position=position))
        return True

    async def forget(self, removed: Found) -> None:
        """Remove the message that says it was removed; one that says it was put again stays."""
        await purge(
            self._connection, self.stream, self._about(removed.meta.name), self._timeout_s, upto=removed.position
        )

    async def is_there(self) -> bool:
        """Whether there is a bucket: it is made when the first object is put."""
        try:
            await info(self._connection, self.stream, self._timeout_s)
        except NotFound:
            return False
        return True

    async def _put(self, name: str, content: bytes, metadata: dict[str, str]) -> None:
        if not self._connection.is_connected:
            raise Unavailable("the line is down")
        if not self._is_set_up:
            await ensure_stream(
                self._connection,
                payloads_config(self._subjects, self._settings.replicas),
                self._settings.request_timeout_s,
            )
            self._is_set_up = True
        found = await self._find(name)
        if found is not None and not found.meta.deleted:
            await self._say(msgspec.structs.replace(found.meta, metadata=metadata), found.position)
            return
        nuid = await self.chunks.upload(content)
        size = self.chunks.size_bytes
        count = -(-len(content) // size)
        meta = Meta(
            name, self.bucket, nuid, len(content), count, _digest(content), False, metadata, {"max_chunk_size": size}
        )
        try:
            await self._say(meta, found.position if found is not None else 0)
        except Moved:
            # Only now is it sure that no object will have these chunks; an answer that was lost says nothing.
            await self.chunks.remove(nuid)
            raise

    async def _say(self, meta: Meta, expected: int) -> int:
        """Store what is so of an object from now on. Raises Moved if `expected` is not the newest message about it."""
        headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(expected)}
        body = msgspec.json.encode(meta)
        return await store(self._connection, self._about(meta.name), body, headers=headers, timeout_s=self._timeout_s)

    async def _find(self, name: str) -> Found | None:
        record = await self._reader.last(self._about(name))
        return _found(record) if record is not None else None

    async def _get(self, name: str, limit_bytes: int) -> bytes:
        try:
            found = await self._find(name)
        except Unavailable:
            if await self.is_there():
                raise
            found = None
        if found is None or found.meta.deleted:
            raise PayloadLost(f"there is no object {name} in bucket {self.bucket}")
        meta = found.meta
        if meta.size > limit_bytes:
            raise PayloadLost(f"object {name} has {meta.size} bytes, {limit_bytes} were declared")
        content = bytearray()
        async with aclosing(self.chunks.read(meta.nuid)) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > meta.size:
                    break
        if len(content) != meta.size or _digest(content) != meta.digest:
            raise PayloadLost(f"object {name} is damaged: its {meta.size} bytes are not those that were stored")
        return bytes(content)

    def _about(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _digest(content: bytes | bytearray) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()}"


def _found(record: Record) -> Found:
    try:
        meta = _meta.decode(record.body)
    except msgspec.MsgspecError as error:
        raise PayloadLost(f"{record.subject!r} says nothing of an object: {error}") from error
    return Found(meta, record.position, record.stored_at)

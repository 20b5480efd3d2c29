"""Payloads of any size in messages of bounded size: packed before an append, unpacked after a read.

What is too large for a message is in the object store, acknowledged, before the message that refers to it is sent. So
whoever reads the message finds it, and what nothing refers to is garbage after a while: see `bus.log.garbage`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from bus.broker.connection import Connection
from bus.format import payload
from bus.format.envelope import Envelope, encode
from bus.format.payload import Limits
from bus.format.subjects import Subjects
from bus.log.objects import Objects
from bus.settings import Settings

T = TypeVar("T")

# What the server adds, and what we put into headers, counts as part of a message.
_HEADERS_BYTES = 4096
# 1 MiB takes up to 8 ms; a loop that is blocked for longer can't say that it lives.
_IN_A_THREAD_BYTES = 2**20


class Payloads:
    """The payloads of one namespace over one connection. It owns nothing that has to be closed."""

    def __init__(self, connection: Connection, subjects: Subjects, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self.objects = Objects(connection, subjects, settings)
        self._inline_bytes = min(settings.compress_above_bytes, _HEADERS_BYTES)

    async def pack(self, subject: str, message: Envelope) -> bytes:
        """The bytes to append on `subject`, soon: what they refer to is stored, and kept for an hour at least.

        Raises TooLarge: the payload is over `payload_limit_bytes`; Unavailable, Misconfigured: it can't be stored.
        """
        # Nearly all messages are small, and stay as they are.
        if len(message.data) <= self._inline_bytes and len(body := encode(message)) <= self._inline_bytes:
            return body
        limits = self._limits
        packed = await _apart(len(memoryview(message.data)), lambda: payload.pack(message, limits))
        if packed.name:
            # For whoever looks at the bucket, and for the collection, which looks there first.
            await self.objects.put(packed.name, packed.content, {"subject": subject, "id": message.id})
        return packed.body

    async def unpack(self, body: bytes) -> bytes:
        """The same message with its data inline; the bytes themselves if it is already.

        Raises MalformedMessage, PayloadLost among it: the object is not there, or damaged; Unavailable.
        """
        parcel = payload.parse(body, self._limits)
        if parcel is None:
            return body
        content = parcel.content
        if parcel.name:
            content = await self.objects.get(parcel.name, limit_bytes=parcel.size_bytes)
        return await _apart(parcel.size_bytes, lambda: parcel.unpacked(content))

    @property
    def _limits(self) -> Limits:
        settings = self._settings
        message_bytes = self._connection.max_payload - _HEADERS_BYTES
        return Limits(settings.payload_limit_bytes, settings.compress_above_bytes, message_bytes)


async def _apart(size: int, work: Callable[[], T]) -> T:
    """Do it, in a thread if it takes long: hashing and compressing let the event loop go on."""
    return await asyncio.to_thread(work) if size > _IN_A_THREAD_BYTES else work()

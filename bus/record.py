"""A record: one message of the log, as the server hands it out, and the live copies of what is being stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import msgspec

from bus.connection import Connection, Message
from bus.envelope import Envelope, decode
from bus.errors import MalformedMessage

# The server adds it; whoever publishes can write anything else into the headers, a status too.
POSITION = "Nats-Sequence"
_LIVE_MESSAGES = 10_000


class Record(msgspec.Struct, frozen=True, gc=False):
    """One message of the log: its position (stream sequence, from 1), its subject and its bytes."""

    position: int
    subject: str
    body: bytes

    def envelope(self) -> Envelope:
        """Raises MalformedMessage if the bytes are not one of ours."""
        return decode(self.body)


def is_record(message: Message) -> bool:
    # Whoever publishes can write a status into the headers; only the server adds a position to them.
    return POSITION in (message.headers or {})


def read_record(message: Message) -> Record:
    headers = message.headers or {}
    try:
        return Record(int(headers[POSITION]), headers["Nats-Subject"], message.data)
    except (KeyError, ValueError):
        raise MalformedMessage(f"{message.subject!r} does not say which position it has: {headers}") from None


class Live:
    """The live copies of a subject, in a bounded buffer that remembers whether it may have missed one."""

    def __init__(self, connection: Connection, subject: str) -> None:
        self._records: deque[Record] = deque()
        self._woken = asyncio.Event()
        self._missed = False
        self._subscription = connection.subscribe(subject, self._take)
        self._unregister = connection.on_reconnect(self._miss)

    def caught_up(self) -> None:
        """From here on the buffer is complete: call it before reading what is stored."""
        self._missed = False
        self._records.clear()

    async def records(self) -> AsyncGenerator[Record, None]:
        """What arrives, until something may have been missed."""
        while True:
            while self._records:
                yield self._records.popleft()
            if self._missed:
                return
            self._woken.clear()
            await self._woken.wait()

    def close(self) -> None:
        self._unregister()
        self._subscription.unsubscribe()

    def _take(self, message: Message) -> None:
        if len(self._records) >= _LIVE_MESSAGES:
            self._miss()
        elif not self._missed:
            self._records.append(read_record(message))
            self._woken.set()

    def _miss(self) -> None:
        self._missed = True
        self._woken.set()

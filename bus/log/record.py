"""A record: one message of the log, as the server hands it out, and the live copies of what is being stored."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

import msgspec

from bus.broker.connection import Connection, Message
from bus.errors import MalformedMessage
from bus.format.envelope import Envelope, decode

# The server adds them, behind whatever the publisher wrote.
POSITION, _SUBJECT, _STORED_AT = b"Nats-Sequence", b"Nats-Subject", b"Nats-Time-Stamp"
# How the headers of a live copy end, and those of no answer to a Direct Get: whoever may read can have the server send
# such an answer to where live copies are expected.
_COPIED = re.compile(rb"\r\nNats-Time-Stamp: \S+\r\nNats-Last-Sequence: (\d+)\r\n\r\n")
_OF_THE_SERVER = {
    *(f"Nats-{name}" for name in ("Stream", "Sequence", "Subject", "Time-Stamp", "Last-Sequence", "Num-Pending")),
    *(f"Nats-{name}" for name in ("Batch-Id", "Batch-Sequence", "Batch-Commit")),
    *(f"Nats-Expected-Last-{name}" for name in ("Sequence", "Subject-Sequence", "Subject-Sequence-Subject")),
    "Nats-Expected-Stream",
    "Nats-UpTo-Sequence",
    "Description",
}
_LIVE_MESSAGES = 10_000
_LIVE_BYTES = 8 * 2**20


class Record(msgspec.Struct, frozen=True, gc=False):
    """One message of the log: its position (stream sequence, from 1), its subject, its bytes, its headers unparsed."""

    position: int
    subject: str
    body: bytes
    head: bytes = b""

    def envelope(self) -> Envelope:
        """Raises MalformedMessage if the bytes are not one of ours."""
        return decode(self.body)

    @property
    def stored_at(self) -> datetime:
        """When the server stored it, by the server's clock (UTC). Raises MalformedMessage if it does not say."""
        stamp = Message("", b"", head=self.head).stamp(_STORED_AT)
        try:
            return datetime.fromisoformat((stamp or b"").decode())
        except ValueError:
            raise MalformedMessage(f"position {self.position} does not say when it was stored: {stamp!r}") from None

    @property
    def headers(self) -> dict[str, str]:
        """What the publisher put into the headers and still means something: no expectations, no batch."""
        found = Message("", b"", head=self.head).headers
        return {name: value for name, value in found.items() if name not in _OF_THE_SERVER}


def is_record(message: Message) -> bool:
    # Whoever publishes can write a status into the headers; only the server adds a position to them.
    return message.stamp(POSITION) is not None


def is_end(message: Message) -> bool:
    """Whether the server says with it that a page of records ends here, or that there is none."""
    # Not by the status alone: whoever publishes can write one into the headers of a record.
    return bool(message.status) and not is_record(message)


def read_record(message: Message) -> Record:
    """Raises MalformedMessage if the server does not say where it stands."""
    position, subject = message.stamp(POSITION), message.stamp(_SUBJECT)
    if position is None or subject is None or not position.isdigit():
        raise MalformedMessage(f"{message.subject!r} does not say which position it has: {message.headers}")
    return Record(int(position), subject.decode("utf-8", "surrogateescape"), message.data, message.head)


class Live:
    """The live copies of some subjects, in a bounded buffer that remembers whether it may have missed one.

    A copy can be lost between two servers of a cluster without a word. So one counts only if nothing wanted can stand
    before it: it is the very next position, or the next of the one subject there is.
    """

    def __init__(self, connection: Connection, subjects: Sequence[str]) -> None:
        self._records: deque[tuple[int, Record]] = deque()
        self._size_bytes = 0
        self._newest = 0
        self._woken = asyncio.Event()
        self._missed = False
        # Each copy names the position before it on its subject, which says nothing of other subjects.
        self._is_chain = len(subjects) == 1 and not {"*", ">"} & set(subjects[0].split("."))
        self._subscriptions = [connection.subscribe(subject, self._take) for subject in subjects]
        self._unregister = connection.on_reconnect(self._miss)

    def caught_up(self) -> int:
        """From here on the buffer is complete: call it before reading what is stored.

        Returns the newest position that any copy has told of: so much is stored, whoever may not have it yet.
        """
        self._missed = False
        self._records.clear()
        self._size_bytes = 0
        return self._newest

    async def records(self, after: int, *, idle_s: float) -> AsyncGenerator[Record, None]:
        """What arrives after a position, once each, until something may have been missed or nothing came for `idle_s`.

        Then it has to be looked up what is stored after the last one that came.
        """
        while True:
            while self._records:
                before, record = self._records.popleft()
                self._size_bytes -= len(record.body)
                if record.position <= after:
                    continue
                if record.position != after + 1 and not (self._is_chain and before <= after):
                    return
                yield record
                after = record.position
            if self._missed:
                return
            self._woken.clear()
            try:
                async with asyncio.timeout(idle_s):
                    await self._woken.wait()
            except TimeoutError:
                return

    def close(self) -> None:
        self._unregister()
        for subscription in self._subscriptions:
            subscription.unsubscribe()

    def _take(self, message: Message) -> None:
        if self._missed:
            return
        full = len(self._records) >= _LIVE_MESSAGES or self._size_bytes > _LIVE_BYTES
        copied = _COPIED.fullmatch(message.head, max(0, message.head.rfind(b"\r\nNats-Time-Stamp: ")))
        if full or copied is None or not is_record(message):
            self._miss()
            return
        before, record = int(copied[1]), read_record(message)
        self._records.append((before, record))
        self._size_bytes += len(record.body)
        self._newest = max(self._newest, record.position)
        self._woken.set()

    def _miss(self) -> None:
        self._missed = True
        self._woken.set()

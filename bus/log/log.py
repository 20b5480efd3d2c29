"""The log: one ordered stream that everything is in. Append at a known version, read by position, follow live."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from bus.broker.connection import Connection
from bus.broker.patience import patiently
from bus.format.envelope import Envelope
from bus.format.subjects import Subjects
from bus.log.appending import Appender, Fence, Part, VersionConflict
from bus.log.payloads import Payloads
from bus.log.pipeline import Pipeline
from bus.log.reading import Reader
from bus.log.record import Record
from bus.log.streams import set_up
from bus.settings import Settings

if TYPE_CHECKING:
    from bus.log.archive import Archive

__all__ = ["Log", "Part", "Pipeline", "Record", "VersionConflict"]


class Log:
    """The stream of one namespace over one connection. It owns nothing that has to be closed.

    Positions are stream sequences: they count from 1 and only grow; `after` excludes, `upto` includes. Subjects may
    have wildcards. With an `archive`, what was taken out of the log is read as if it were still there.
    """

    def __init__(
        self, connection: Connection, subjects: Subjects, settings: Settings, archive: Archive | None = None
    ) -> None:
        self._connection = connection
        self._settings = settings
        self.subjects = subjects
        payloads = self._payloads = Payloads(connection, subjects, settings)
        self._reader = Reader(
            connection,
            subjects.stream,
            timeout_s=settings.request_timeout_s,
            patience_s=settings.append_timeout_s,
            replicas=settings.replicas,
            unpack=payloads.unpack,
            archive=archive,
        )
        self._appender = Appender(connection, self._reader, payloads, settings)

    @property
    def patience_s(self) -> float:
        """How long what fails for a while is tried again."""
        return self._settings.append_timeout_s

    async def set_up(self, *, create: bool = True) -> None:
        """Check that the streams are what the bus promises, and create what is not there unless told otherwise.

        Raises Misconfigured, naming the first wrong setting; NotFound if something is not there, and stays so.
        """
        check = partial(set_up, self._connection, self.subjects, self._settings, create=create)
        # Of several servers, those that are choosing a leader say nothing for a while.
        await (patiently(self._connection, check, self.patience_s) if self._settings.replicas > 1 else check())

    async def append(
        self, subject: str, message: Envelope, *, expected: int | None = None, fence: Fence | None = None
    ) -> int:
        """Store one message; returns its position.

        `expected` is the position of the newest message on `subject` the caller has seen, 0 for none. Raises
        VersionConflict: someone wrote first. `fence` is a lease: the server stores the message only while the caller
        has it, otherwise LeaseLost is raised. Raises TooLarge before sending; Unavailable: not known, see
        `bus.log.appending`. Source: headers Nats-Msg-Id and Nats-Expected-Last-Subject-Sequence(-Subject); a resend
        repeats them.
        """
        return await self._appender.append(Part(subject, message, expected, fence))

    async def pack(self, subject: str, message: Envelope) -> bytes:
        """The bytes an append of the message on `subject` would send; what they refer to is stored for an hour or more.

        Raises TooLarge, Unavailable, Misconfigured.
        """
        return await self._payloads.pack(subject, message)

    async def unpack(self, body: bytes) -> bytes:
        """A message's bytes with its data inline, whatever form `pack` gave them.

        Raises MalformedMessage, PayloadLost among it; Unavailable.
        """
        return await self._payloads.unpack(body)

    def pipeline(self, *, window: int = 1_000) -> Pipeline:
        """For many appends that do not depend on each other: `async with log.pipeline() as pipeline`.

        At most `window` of them are unanswered at any moment; `Pipeline.append` waits for room.
        """
        return Pipeline(self._appender, window)

    async def append_together(self, parts: Sequence[Part]) -> int:
        """Store several messages on different subjects, all or none; returns the position of the first.

        Raises as `append`, and TooMany for more than 1,000. Ten times dearer than one append on a single node (the
        server makes a file store for each batch), so only for what really spans subjects. Source: ADR-50.
        """
        return await self._appender.append_together(parts)

    def read(self, *subjects: str, after: int = 0, upto: int | None = None) -> AsyncGenerator[Record, None]:
        """What is stored on any of `subjects`, in order, from after `after` up to and including `upto`.

        Ends with the newest message there is when it gets there; of several subjects, that there was when it began.
        Memory is bounded by two pages for each subject.
        Raises InvalidName, Unavailable. Source: batched direct get, ADR-31.
        """
        return self._reader.read(*subjects, after=after, upto=upto)

    def read_back(self, *subjects: str, before: int | None = None) -> AsyncGenerator[Record, None]:
        """The same backwards: newest first, from before position `before`. Raises Unavailable."""
        return self._reader.read_back(*subjects, before=before)

    def follow(self, *subjects: str, after: int = 0) -> AsyncGenerator[Record, None]:
        """Like `read`, but goes on for ever with what is stored from now on: no gap, no duplicate, in order.

        Live messages come from the server's republishing. Whenever some may have been missed (a reconnect, a copy that
        names one before it that never came, a reader too slow for its bounded buffer, silence for some seconds), it
        reads from its position again.
        """
        return self._reader.follow(*subjects, after=after)

    async def last(self, subject: str) -> Record | None:
        """The newest message on `subject`, if there is one."""
        return await self._reader.last(subject)

    async def at(self, position: int) -> Record | None:
        """The message at a position, if there is one."""
        return await self._reader.at(position)

    async def position_at(self, instant: datetime) -> int:
        """The position of the last message stored before `instant`, 0 if there is none: an `after` or `upto`."""
        return await self._reader.position_at(instant)

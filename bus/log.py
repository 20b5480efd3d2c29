"""The log: one ordered stream that everything is in. Append at a known version, read by position, follow live.

An append answers exactly one of three things: stored, `VersionConflict` (and then it is true: nothing of ours is
there), or `Unavailable` (not known, and it was tried for as long as the settings allow).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from uuid import uuid4

import msgspec
import structlog

from bus.connection import Connection, Message
from bus.envelope import CONTENT_TYPE, Envelope, encode
from bus.errors import BusError, MalformedMessage, Misconfigured, NoResponders, Unavailable
from bus.record import POSITION, Live, Record, is_record, read_record
from bus.settings import Settings
from bus.streams import ApiError, set_up
from bus.subjects import Subjects

logger = structlog.get_logger(__name__)

_CONFLICTS = {10071, 10164}
_ALREADY_COMMITTED = 10201
_TEMPORARY = {408, 429, 503}
_END_OF_BATCH = 204
_NOT_FOUND = 404
_PAGE = 500
_PAGE_BYTES = 4 * 2**20
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


_Send = Callable[[float], Awaitable[Message]]


class VersionConflict(BusError):
    """Another writer appended first. Decide again on what `tail` adds, and append again.

    `tail` holds the records stored on `subject` after position `expected`, read when the conflict was found.
    """

    def __init__(self, subject: str, expected: int, tail: Sequence[Record]) -> None:
        super().__init__(f"{subject!r} has moved on from position {expected}")
        self.subject = subject
        self.expected = expected
        self.tail = tail


class _Ack(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    error: ApiError | None = None


_ack = msgspec.json.Decoder(_Ack)


class Log:
    """The stream of one namespace over one connection. It owns nothing that has to be closed."""

    def __init__(self, connection: Connection, subjects: Subjects, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self.subjects = subjects

    @property
    def patience_s(self) -> float:
        """How long what fails for a while is tried again."""
        return self._settings.append_timeout_s

    async def set_up(self, *, create: bool = True) -> None:
        """Check that the streams are what the bus promises, and create what is not there unless told otherwise.

        Raises Misconfigured, naming the first wrong setting; NotFound if something is not there, and stays so.
        """
        await set_up(self._connection, self.subjects, self._settings, create=create)

    async def append(self, subject: str, message: Envelope, *, expected: int | None = None) -> int:
        """Store one message; returns its position.

        `expected` is the position of the newest message on `subject` the caller has seen, 0 for none. Raises
        VersionConflict: someone wrote first. Raises TooLarge before sending; Unavailable: not known, see above.
        Source: headers Nats-Msg-Id and Nats-Expected-Last-Subject-Sequence; a resend repeats both.
        """
        headers = _headers(message, expected)
        body = encode(message)
        # Without an expectation the id alone makes a resend harmless, within the server's window for duplicates.
        return await self._insist(
            lambda timeout_s: self._connection.request(subject, body, headers=headers, timeout_s=timeout_s),
            [(subject, message, expected)],
        )

    async def append_together(self, parts: Sequence[tuple[str, Envelope, int | None]]) -> int:
        """Store several messages on different subjects, all or none; returns the position of the first.

        `parts` are (subject, message, expected) as in `append`. Ten times dearer than one append on a single node
        (the server makes a file store for each batch), so only for what really spans subjects. Source: ADR-50.
        """
        encoded = [(subject, encode(message), _headers(message, expected)) for subject, message, expected in parts]

        async def send(timeout_s: float) -> Message:
            batch = uuid4().hex
            for number, (subject, body, headers) in enumerate(encoded, 1):
                members = headers | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
                if number < len(encoded):
                    self._connection.publish(subject, body, headers=members)
            members["Nats-Batch-Commit"] = "1"
            return await self._connection.request(subject, body, headers=members, timeout_s=timeout_s)

        return await self._insist(send, parts)

    async def read(self, subject: str, *, after: int = 0, upto: int | None = None) -> AsyncGenerator[Record, None]:
        """What is stored on `subject` (wildcards allowed), in order, from after `after` up to and including `upto`.

        Ends with the newest message there is when it gets there. Memory is bounded by a page. Raises Unavailable.
        Source: batched direct get, ADR-31.
        """
        while True:
            page, after, more = await self._page(subject, after)
            for record in page:
                if upto is not None and record.position > upto:
                    return
                yield record
            if not more:
                return

    async def last(self, subject: str) -> Record | None:
        """The newest message on `subject`, if there is one."""
        message = await self._get({"last_by_subj": subject})
        return read_record(message) if is_record(message) else None

    async def at(self, position: int) -> Record | None:
        """The message at a position, if there is one."""
        message = await self._get({"seq": position})
        return read_record(message) if is_record(message) else None

    async def position_at(self, instant: datetime) -> int:
        """The position of the last message stored before `instant`, 0 if there is none."""
        message = await self._get({"start_time": instant.isoformat(), "next_by_subj": ">"})
        if is_record(message):
            return read_record(message).position - 1
        newest = await self.last(">")
        return newest.position if newest is not None else 0

    async def follow(self, subject: str, *, after: int = 0) -> AsyncGenerator[Record, None]:
        """Like `read`, but goes on for ever with what is stored from now on: no gap, no duplicate, in order.

        Live messages come from the server's republishing. Whenever some may have been missed (a reconnect, or a
        reader too slow for its bounded buffer), it reads from its position again.
        """
        live = Live(self._connection, self.subjects.live_copy(subject))
        try:
            while True:
                live.caught_up()
                try:
                    async for record in self.read(subject, after=after):
                        yield record
                        after = record.position
                except (Unavailable, NoResponders):
                    await asyncio.sleep(_PAUSE_S)
                    continue
                async for record in live.records():
                    if record.position > after:
                        yield record
                        after = record.position
        finally:
            live.close()

    async def _page(self, subject: str, after: int) -> tuple[list[Record], int, bool]:
        """One page, the position it ends at, and whether there is more after it."""
        request = {"seq": after + 1, "next_by_subj": subject, "batch": _PAGE, "max_bytes": _PAGE_BYTES}
        page: list[Record] = []
        asked = self._connection.request_many(
            self._direct_get, msgspec.json.encode(request), timeout_s=self._settings.request_timeout_s
        )
        try:
            async with aclosing(asked) as answers:
                async for message in answers:
                    headers = message.headers or {}
                    if POSITION in headers or not message.status:
                        _add(page, message)
                    elif message.status == _NOT_FOUND:
                        return page, after, False
                    elif message.status == _END_OF_BATCH:
                        upto = int(headers.get("Nats-Last-Sequence", after))
                        return page, upto, headers.get("Nats-Num-Pending", "0") != "0"
                    else:
                        raise BusError(f"reading {subject!r}: the server answered {message.status}: {headers}")
        except NoResponders:
            raise Unavailable("the log's stream does not answer") from None
        raise Unavailable(f"reading {subject!r}: the server stopped answering after position {after}")

    @property
    def _direct_get(self) -> str:
        return f"$JS.API.DIRECT.GET.{self.subjects.stream}"

    async def _get(self, request: dict[str, object]) -> Message:
        try:
            return await self._connection.request(
                self._direct_get, msgspec.json.encode(request), timeout_s=self._settings.request_timeout_s
            )
        except NoResponders:
            raise Unavailable("the log's stream does not answer") from None

    async def _insist(self, send: _Send, parts: Sequence[tuple[str, Envelope, int | None]]) -> int:
        """Send until there is an answer that settles it. What may have been stored unseen is looked up by its id."""
        deadline = time.monotonic() + self._settings.append_timeout_s
        pause_s = _PAUSE_S
        while True:
            try:
                # Nothing is queued for a server that is away: each resend would be one copy more.
                answer = await self._answer(send)
            except (Unavailable, NoResponders, msgspec.DecodeError) as error:
                reason: object = error
            else:
                if answer.error is None:
                    # The members of a batch stand next to each other; the answer names the last one.
                    return answer.seq - len(parts) + 1
                if answer.error.err_code in _CONFLICTS | {_ALREADY_COMMITTED}:
                    return await self._settle(parts)
                if answer.error.code not in _TEMPORARY:
                    raise Misconfigured(f"the log refused a message to {parts[0][0]!r}: {answer.error.description}")
                reason = answer.error.description
            if time.monotonic() + pause_s > deadline:
                raise Unavailable(
                    f"{parts[0][0]!r} was not appended within {self._settings.append_timeout_s:g} s ({reason}); "
                    "it may still arrive, so repeat it only with the same id"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _answer(self, send: _Send) -> _Ack:
        if not self._connection.is_connected:
            raise Unavailable("the line is down")
        return _ack.decode((await send(self._settings.request_timeout_s)).data)

    async def _settle(self, parts: Sequence[tuple[str, Envelope, int | None]]) -> int:
        """A conflict may be our own first try, whose answer was lost: only what stands there tells."""
        subject, message, expected = next((part for part in parts if part[2] is not None), parts[0])
        tail = [record async for record in self.read(subject, after=expected or 0)]
        for record in tail:
            try:
                if record.envelope().id == message.id:
                    return record.position
            except MalformedMessage:
                continue
        raise VersionConflict(subject, expected or 0, tail)


def _headers(message: Envelope, expected: int | None) -> dict[str, str]:
    headers = {"Nats-Msg-Id": message.id, "Content-Type": CONTENT_TYPE}
    if expected is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
    return headers


def _add(page: list[Record], message: Message) -> None:
    try:
        page.append(read_record(message))
    except MalformedMessage as error:
        # Its headers can't be read, so nobody can say where it stands; the page's end says where to go on.
        logger.warning("unreadable record", error=str(error), size_bytes=len(message.data))

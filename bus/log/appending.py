"""Appending to the log: sent until there is an answer that settles it, and never stored twice.

An append answers exactly one of three things: stored, `VersionConflict` (and then it is true: nothing of ours is
there), or `Unavailable` (not known, and it was tried for as long as the settings allow). Whoever gives two messages one
id is told so (`Refused`): the server would take the second for a resend of the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from uuid import uuid4

import msgspec

from bus.broker.acknowledgement import ALREADY_COMMITTED, BATCH_MEMBERS, CONFLICTS, TEMPORARY, Ack, read_ack
from bus.broker.connection import Connection, Message
from bus.errors import BusError, LeaseLost, Misconfigured, NoResponders, Refused, SettingsError, TooMany, Unavailable
from bus.format.envelope import CONTENT_TYPE, UNDECODABLE, Envelope
from bus.log.payloads import Payloads
from bus.log.reading import Reader
from bus.log.record import Record
from bus.settings import Settings

_TAIL_BYTES = 8 * 2**20
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# The server knows a message's id again for two minutes; a first try is not older than that, clocks being what they are.
_RECENT = timedelta(minutes=5)

_Send = Callable[[float], Awaitable[Message]]


class VersionConflict(BusError):
    """Another writer appended first. Decide again on what `tail` adds, and append again.

    `tail` holds the records stored on `subject` after position `expected`, read when the conflict was found. Of very
    many only the first; then `has_more` says so.
    """

    def __init__(self, subject: str, expected: int, tail: Sequence[Record], *, has_more: bool = False) -> None:
        super().__init__(f"{subject!r} has moved on from position {expected}")
        self.subject = subject
        self.expected = expected
        self.tail = tail
        self.has_more = has_more


class Fence(Protocol):
    """What a writer must still have for a message to be stored: a lease. `token` is the newest position on `subject`
    as long as that is so."""

    @property
    def what(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def token(self) -> int: ...


class Part(NamedTuple):
    """A message for a subject. `expected`: newest position there that the writer has seen, 0: none, None: any.

    With `fence` it is stored only while the writer has that lease. A message has one expectation: this, or its own.
    """

    subject: str
    message: Envelope
    expected: int | None = None
    fence: Fence | None = None


class _Identity(msgspec.Struct, frozen=True):
    """Of a message whose payload may be lost, too."""

    id: str


_identity = msgspec.json.Decoder(_Identity)


class Appender:
    """Writes one stream over one connection. It owns nothing that has to be closed."""

    def __init__(self, connection: Connection, reader: Reader, payloads: Payloads, settings: Settings) -> None:
        self._connection = connection
        self._reader = reader
        self._payloads = payloads
        self._settings = settings

    async def append(self, part: Part) -> int:
        """Raises VersionConflict, LeaseLost, TooLarge before sending, Unavailable."""
        headers, body = _headers(part), await self._payloads.pack(part.subject, part.message)
        # Without an expectation the id alone makes a resend harmless, within the server's window for duplicates.
        return await self._insist(
            lambda timeout_s: self._connection.request(part.subject, body, headers=headers, timeout_s=timeout_s), [part]
        )

    async def append_soon(self, part: Part) -> asyncio.Future[Message]:
        """Send, once; `position_of` reads the answer. Raises TooLarge, and Unavailable if too much waits."""
        body = await self._payloads.pack(part.subject, part.message)
        return self._connection.request_soon(
            part.subject, body, headers=_headers(part), timeout_s=self._settings.request_timeout_s
        )

    def position_of(self, sent: asyncio.Future[Message]) -> int | None:
        """What an `append_soon` was answered, if that settles it; if not, `append` has to be tried."""
        if sent.cancelled() or sent.exception() is not None:
            return None
        try:
            answer = read_ack(sent.result().data)
        except msgspec.DecodeError:
            return None
        return answer.seq if answer.error is None and not answer.duplicate else None

    async def append_together(self, parts: Sequence[Part]) -> int:
        """Raises VersionConflict, LeaseLost, TooLarge and TooMany before sending, Unavailable."""
        if len(parts) > BATCH_MEMBERS:
            raise TooMany("messages of one batch", len(parts), BATCH_MEMBERS)
        encoded = [
            (part.subject, await self._payloads.pack(part.subject, part.message), _headers(part)) for part in parts
        ]

        async def send(timeout_s: float) -> Message:
            batch = uuid4().hex
            members = [
                (subject, body, headers | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)})
                for number, (subject, body, headers) in enumerate(encoded, 1)
            ]
            members[-1][2]["Nats-Batch-Commit"] = "1"
            return await self._connection.request_batch(members, timeout_s=timeout_s)

        return await self._insist(send, parts)

    async def _insist(self, send: _Send, parts: Sequence[Part]) -> int:
        """Send until there is an answer that settles it. What may have been stored unseen is looked up by its id."""
        deadline = time.monotonic() + self._settings.append_timeout_s
        pause_s = _PAUSE_S
        while True:
            try:
                # Nothing is queued for a server that is away: each resend would be one copy more.
                answer = await self._answer(send)
                if answer.error is None:
                    # The members of a batch stand next to each other; the answer names the last one.
                    first = answer.seq - len(parts) + 1
                    return await self._ours(first, parts) if answer.duplicate else first
                if answer.error.err_code in CONFLICTS | {ALREADY_COMMITTED}:
                    return await self._ours(await self._settle(parts), parts)
            except (Unavailable, NoResponders, msgspec.DecodeError) as error:
                reason: object = error
            else:
                if answer.error.code not in TEMPORARY:
                    raise Misconfigured(
                        f"the log refused a message to {parts[0].subject!r}: {answer.error.description}"
                    )
                reason = answer.error.description
            if time.monotonic() + pause_s > deadline:
                raise Unavailable(
                    f"{parts[0].subject!r} was not appended within {self._settings.append_timeout_s:g} s ({reason}); "
                    "it may still arrive, so repeat it only with the same id"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _answer(self, send: _Send) -> Ack:
        if not self._connection.is_connected:
            raise Unavailable("the line is down")
        return read_ack((await send(self._settings.request_timeout_s)).data)

    async def _settle(self, parts: Sequence[Part]) -> int:
        """A conflict may be our own first try, whose answer was lost: only what stands there tells.

        Where one member of a batch is stored all are, next to each other.
        """
        conflict: VersionConflict | None = None
        for number, part in enumerate(parts):
            if part.expected is None:
                continue
            tail: list[Record] = []
            size_bytes = 0
            # Nothing can stand between what was expected and what of ours was stored: it is among the first.
            async with aclosing(self._reader.read(part.subject, after=part.expected)) as records:
                async for record in records:
                    if _is(record, part.message):
                        return record.position - number
                    tail.append(record)
                    size_bytes += len(record.body)
                    if size_bytes > _TAIL_BYTES:
                        break
            if tail and conflict is None:
                conflict = VersionConflict(part.subject, part.expected, tail, has_more=size_bytes > _TAIL_BYTES)
        if conflict is not None:
            raise conflict
        recent = datetime.now(UTC) - _RECENT
        async with aclosing(self._reader.read_back(parts[0].subject)) as records:
            async for record in records:
                if _is(record, parts[0].message):
                    return record.position
                if record.stored_at < recent:
                    break
        for part in parts:
            if part.fence is not None:
                newest = await self._reader.last(part.fence.subject)
                if newest is not None and newest.position > part.fence.token:
                    raise LeaseLost(part.fence.what, part.fence.token, "the log refused what it was to guard")
        # A replica answered that does not have yet what its leader refused it for.
        raise Unavailable(f"what {parts[0].subject!r} refused it for is not to be seen")

    async def _ours(self, first: int, parts: Sequence[Part]) -> int:
        """What has our id was stored by an earlier try of ours, unless the id was used before for something else."""
        for number in {0, len(parts) - 1}:
            part = parts[number]
            record = await self._reader.at(first + number)
            if record is None:
                raise Unavailable(f"position {first + number} is not to be seen yet")
            if record.subject != part.subject or not _is(record, part.message):
                raise Refused(
                    f"the server knows an id of what was to be stored on {part.subject!r} as another message's "
                    f"(message {part.message.id!r}): nothing was stored, give each message an id of its own"
                )
        return first


def _is(record: Record, message: Envelope) -> bool:
    try:
        return _identity.decode(record.body).id == message.id
    except UNDECODABLE:
        return False


def _headers(part: Part) -> dict[str, str]:
    headers = {"Nats-Msg-Id": part.message.id, "Content-Type": CONTENT_TYPE}
    if part.expected is not None and part.fence is not None:
        raise SettingsError(f"what goes to {part.subject!r} can expect a position or a lease, not both: append two")
    if part.expected is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(part.expected)
    if part.fence is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(part.fence.token)
        headers["Nats-Expected-Last-Subject-Sequence-Subject"] = part.fence.subject
    return headers

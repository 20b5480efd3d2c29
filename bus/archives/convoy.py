"""A convoy: copies of records, appended in order, many at a time, none before its predecessor on its subject.

Each names the position its predecessor will have if nobody else writes meanwhile. So whatever is lost on the line or
comes in between, no copy stands before its predecessor, and none twice: what fails is looked for, and sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing

import msgspec
import structlog

from bus.broker.acknowledgement import CONFLICTS, TEMPORARY, read_ack
from bus.broker.connection import Connection, Message
from bus.client import Client
from bus.errors import InvalidName, MalformedMessage, Misconfigured, NoResponders, Refused, TooLarge, Unavailable
from bus.format.envelope import Envelope, decode, encode
from bus.log.record import Record
from bus.log.streams import info

logger = structlog.get_logger(__name__)

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_FARTHEST = 10**18
_PAUSE_S = 0.1
# The server takes a message whose id it has seen within two minutes for a resend, even if the log it comes from has
# both: then the second has to wait.
_DUPLICATES_S, _DUPLICATE_PAUSE_S = 150.0, 10.0


class Copy(msgspec.Struct, frozen=True):
    """What was published once, to be stored again as it was; `body` is how it is sent, the payload packed."""

    subject: str
    headers: Mapping[str, str]
    content: bytes
    body: bytes = b""

    def objection(self, connection: Connection) -> str | None:
        """Why it can't be sent: a hostile client can store what ours refuses to send."""
        try:
            connection.check(self.subject, b"", self.headers)
        except InvalidName as error:
            return str(error)
        return None

    def check_size(self, client: Client) -> None:
        """Raises TooLarge."""
        message, limit_bytes = self._message(client), client.settings.payload_limit_bytes
        if message is None:
            client.connection.check(self.subject, self.content, self._guarded(_FARTHEST))
        elif (size_bytes := len(memoryview(message.data))) > limit_bytes:
            raise TooLarge(f"the payload of {message.type}", size_bytes, limit_bytes)

    async def packed(self, client: Client) -> Copy:
        """The same, ready to be sent. Raises Unavailable if its payload can't be stored beside the log."""
        message = self._message(client)
        body = self.content if message is None else await client.log.pack(self.subject, message)
        return msgspec.structs.replace(self, body=body)

    def send(self, client: Client, expected: int) -> asyncio.Future[Message]:
        """Send it, to follow a position on its subject."""
        timeout_s = client.settings.request_timeout_s
        return client.connection.request_soon(
            self.subject, self.body, headers=self._guarded(expected), timeout_s=timeout_s
        )

    def _guarded(self, expected: int) -> dict[str, str]:
        return {**self.headers, _EXPECTED: str(expected)}

    def _message(self, client: Client) -> Envelope | None:
        """The message, if its payload is worth packing, and it would be read again as it is."""
        if len(self.content) <= client.settings.compress_above_bytes:
            return None
        try:
            message = decode(self.content)
        except MalformedMessage:
            return None
        return message if encode(message) == self.content else None

    def is_in(self, record: Record) -> bool:
        return (record.subject, record.body, record.headers) == (self.subject, self.content, self.headers)


class Convoy:
    """Writes one log. `stored` counts its copies.

    `lasts` is the newest position of each subject that has one, as of position `upto` of the log. Nobody else may write
    to the subjects of a convoy; elsewhere they may.
    """

    def __init__(self, client: Client, lasts: Mapping[str, int], upto: int) -> None:
        self._client = client
        self._lasts = dict(lasts)
        # The newest position heard of; and the one up to which it is known what became of whatever was sent.
        self._newest = self._settled = upto
        self.stored = 0

    async def append(self, copies: Sequence[Copy]) -> None:
        """Store them, or raise: Refused (somebody else wrote to one of their subjects), Misconfigured, Unavailable."""
        began = time.monotonic()
        while copies:
            missing, refusal = copies, None
            try:
                missing, refusal = await self._send(copies)
                if refusal is None:
                    self._settled = self._newest
                else:
                    missing = await self._look(missing)
            except (Unavailable, NoResponders) as error:
                refusal = _Refusal(str(error))
            self.stored += len(copies) - len(missing)
            if len(missing) < len(copies):
                began = time.monotonic()
            elif refusal is not None:
                patience_s = _DUPLICATES_S if refusal.is_duplicate else self._client.log.patience_s
                if time.monotonic() - began > patience_s:
                    raise Unavailable(f"it goes no further ({refusal.reason}); what is stored stays: repeat it")
                if refusal.is_duplicate:
                    logger.warning("waiting", subject=copies[0].subject, reason=refusal.reason)
                await asyncio.sleep(_DUPLICATE_PAUSE_S if refusal.is_duplicate else _PAUSE_S)
            copies = missing

    async def _send(self, copies: Sequence[Copy]) -> tuple[Sequence[Copy], _Refusal | None]:
        """Send all; those that are not known to be stored, and why the first of them is not."""
        if not self._client.connection.is_connected:
            raise Unavailable("the line is down")
        ahead: dict[str, int] = {}
        sent = []
        for position, copy in enumerate(copies, self._newest + 1):
            expected = ahead.get(copy.subject) or self._lasts.get(copy.subject, 0)
            sent.append(copy.send(self._client, expected))
            ahead[copy.subject] = position
        answers = [_position_in(answer) for answer in await asyncio.gather(*sent, return_exceptions=True)]
        missing: deque[Copy] = deque()
        refusal: _Refusal | None = None
        followed: set[str] = set()
        for copy, answer in zip(reversed(copies), reversed(answers), strict=True):
            if isinstance(answer, int):
                self._newest = max(self._newest, answer)
                self._lasts[copy.subject] = max(self._lasts.get(copy.subject, 0), answer)
                followed.add(copy.subject)
            elif copy.subject not in followed:  # what its successor could follow is there
                missing.appendleft(copy)
                refusal = answer
        return list(missing), refusal

    async def _look(self, copies: Sequence[Copy]) -> Sequence[Copy]:
        """Those of the copies that are not there; the answers to the others were lost. Raises Refused."""
        upto = await last_position(self._client)
        waiting: dict[str, deque[Copy]] = {}
        for copy in copies:
            waiting.setdefault(copy.subject, deque()).append(copy)
        everything = f"{self._client.subjects.namespace}.>"
        async with aclosing(self._client.log.read(everything, after=self._settled, upto=upto)) as records:
            async for record in records:
                rest = waiting.get(record.subject)
                if rest is None or record.position <= self._lasts.get(record.subject, 0):
                    continue
                if not rest or not rest[0].is_in(record):
                    raise _meddled(record)
                rest.popleft()
                self._lasts[record.subject] = record.position
        self._newest = self._settled = upto
        left = {id(copy) for rest in waiting.values() for copy in rest}
        missing = [copy for copy in copies if id(copy) in left]
        if len(missing) == len(copies):
            # Nothing of it came since; what stands in its way may have come before.
            newest = await self._client.log.last(copies[0].subject)
            if newest is not None and self._lasts.get(newest.subject, 0) < newest.position <= upto:
                raise _meddled(newest)
        return missing


def _meddled(record: Record) -> Refused:
    return Refused(f"position {record.position}: somebody else writes to {record.subject!r} meanwhile")


async def last_position(client: Client) -> int:
    """The log's last position, even if nothing stands there any more. Raises Unavailable."""
    return (await info(client.connection, client.subjects.stream, client.settings.request_timeout_s)).last


class _Refusal(msgspec.Struct, frozen=True):
    """Why a copy was not stored, as far as anybody knows."""

    reason: str
    is_duplicate: bool = False


def _position_in(answer: Message | BaseException) -> int | _Refusal:
    """Where a copy stands now, if the answer says so. Raises Misconfigured for what can't get better."""
    if isinstance(answer, Unavailable | NoResponders):
        return _Refusal(str(answer))
    if isinstance(answer, BaseException):
        raise answer
    try:
        ack = read_ack(answer.data)
    except msgspec.DecodeError as error:
        return _Refusal(str(error))
    if ack.error is None:
        return ack.seq if not ack.duplicate else _Refusal(f"it has the id of position {ack.seq}", is_duplicate=True)
    if ack.error.err_code not in CONFLICTS and ack.error.code not in TEMPORARY:
        raise Misconfigured(f"the log refused a record: {ack.error.description}")
    return _Refusal(ack.error.description)

"""A convoy: copies of records, appended in one order, many at a time, none before its predecessor.

Each names the position it must follow in the whole log, so one that fails makes all behind it fail, and whatever is
lost on the line, no copy stands before its predecessor or twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import aclosing

import msgspec

from bus.client import Client
from bus.connection import Connection, Message
from bus.errors import InvalidName, Misconfigured, NoResponders, Refused, Unavailable
from bus.record import Record
from bus.streams import ApiError

_EXPECTED = "Nats-Expected-Last-Sequence"
_CONFLICT = 10071
_TEMPORARY = {408, 429, 503}
_PAUSE_S = 0.1
# The server takes a message whose id it has seen within two minutes for a resend, even if the log it comes from has
# both: then the second has to wait.
_DUPLICATES_S = 150.0


class Copy(msgspec.Struct, frozen=True):
    """What was published once, to be stored again as it was."""

    subject: str
    headers: Mapping[str, str]
    content: bytes

    def objection(self, connection: Connection) -> str | None:
        """Why it can't be sent: a hostile client can store what ours refuses to send."""
        try:
            connection.check(self.subject, b"", self.headers)
        except InvalidName as error:
            return str(error)
        return None

    def check_size(self, connection: Connection) -> None:
        """Raises TooLarge."""
        connection.check(self.subject, self.content, {**self.headers, _EXPECTED: "9" * 19})

    def is_in(self, record: Record) -> bool:
        return (record.subject, record.body, record.headers) == (self.subject, self.content, self.headers)


class Convoy:
    """Writes one log, behind position `last`. `stored` counts its copies.

    `subjects` are the convoy's own: nobody else may write there meanwhile.
    """

    def __init__(self, client: Client, subjects: Container[str], last: int) -> None:
        self._client = client
        self._subjects = subjects
        self._last = last
        self.stored = 0

    async def append(self, copies: Sequence[Copy]) -> None:
        """Store them, or raise: Refused (somebody else wrote to the convoy's subjects), Misconfigured, Unavailable."""
        began = time.monotonic()
        patience_s = self._client.log.patience_s
        while copies:
            refusal, stored = None, 0
            try:
                stored, refusal = await self._send(copies)
                if refusal is not None:
                    stored += await self._look(copies[stored:])
            except (Unavailable, NoResponders) as error:
                refusal = _Refusal(str(error))
            copies = copies[stored:]
            self.stored += stored
            if stored:
                began = time.monotonic()
            elif refusal is not None:
                if time.monotonic() - began > (_DUPLICATES_S if refusal.is_duplicate else patience_s):
                    raise Unavailable(f"it goes no further ({refusal.reason}); what is stored stays: repeat it")
                await asyncio.sleep(_PAUSE_S)

    async def _send(self, copies: Sequence[Copy]) -> tuple[int, _Refusal | None]:
        """Send all; how many from the first on were stored, and why not all."""
        connection, timeout_s = self._client.connection, self._client.settings.request_timeout_s
        if not connection.is_connected:
            raise Unavailable("the line is down")
        sent = []
        for number, copy in enumerate(copies):
            headers = {**copy.headers, _EXPECTED: str(self._last + number)}
            sent.append(connection.request_soon(copy.subject, copy.content, headers=headers, timeout_s=timeout_s))
        answers = await asyncio.gather(*sent, return_exceptions=True)
        for number, answer in enumerate(answers):
            refusal = _refusal(answer, self._last + 1)
            if refusal is not None:
                return number, refusal
            self._last += 1
        return len(copies), None

    async def _look(self, copies: Sequence[Copy]) -> int:
        """How many of these stand in the log after all: their answers were lost.

        All up to the newest position is looked at, and the next copy has to follow it: none is stored twice.
        """
        upto = await last_position(self._client)
        found = 0
        everything = f"{self._client.subjects.namespace}.>"
        async with aclosing(self._client.log.read(everything, after=self._last, upto=upto)) as records:
            async for record in records:
                if found < len(copies) and copies[found].is_in(record):
                    found += 1
                elif record.subject in self._subjects:
                    raise Refused(f"position {record.position}: somebody else writes to {record.subject!r} meanwhile")
        self._last = upto
        return found


async def last_position(client: Client) -> int:
    """The log's last position, even if nothing stands there any more. Raises Unavailable, NoResponders."""
    subject = f"$JS.API.STREAM.INFO.{client.subjects.stream}"
    answer = await client.connection.request(subject, timeout_s=client.settings.request_timeout_s)
    try:
        return _info.decode(answer.data).state.last_seq
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the log's stream does not say how far it goes: {error}") from error


class _Refusal(msgspec.Struct, frozen=True):
    """Why a copy was not stored, as far as anybody knows."""

    reason: str
    is_duplicate: bool = False


class _Ack(msgspec.Struct, frozen=True):
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class _State(msgspec.Struct, frozen=True):
    last_seq: int


class _Info(msgspec.Struct, frozen=True):
    state: _State


_ack = msgspec.json.Decoder(_Ack)
_info = msgspec.json.Decoder(_Info)


def _refusal(answer: Message | BaseException, position: int) -> _Refusal | None:
    """Why a copy is not known to stand at its position. Raises Misconfigured for what can't get better."""
    if isinstance(answer, Unavailable | NoResponders):
        return _Refusal(str(answer))
    if isinstance(answer, BaseException):
        raise answer
    try:
        ack = _ack.decode(answer.data)
    except msgspec.DecodeError as error:
        return _Refusal(str(error))
    if ack.error is None:
        return None if ack.seq == position else _Refusal(f"the server takes it for position {ack.seq}", ack.duplicate)
    if ack.error.err_code != _CONFLICT and ack.error.code not in _TEMPORARY:
        raise Misconfigured(f"the log refused a record: {ack.error.description}")
    return _Refusal(ack.error.description)

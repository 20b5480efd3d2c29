"""Storing messages that belong together, each where nothing newer may be: all of them, or none.

It answers exactly one of three things: stored, `Conflict` (and then it is true), or `Unavailable` (not known, and it
was tried for as long as the settings allow). Trying again can't store anything twice: each message says what it
expects on its subject, and after the first success that is not so any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

import msgspec

from bus.broker.acknowledgement import ALREADY_COMMITTED, BATCH_MEMBERS, CONFLICTS, TEMPORARY, read_ack
from bus.broker.connection import Connection, Message
from bus.broker.wire import header_block
from bus.errors import BusError, Misconfigured, NoResponders, TooLarge, TooMany, Unavailable
from bus.eventsourcing.calls import Request
from bus.log.jetstream import newest
from bus.settings import Settings

_INCOMPLETE = 10176  # members of a batch were lost with a line
_FLUSH_BYTES = 4 * 2**20
_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


class Member(NamedTuple):
    """One message, the bytes unlike any other's; `expected` is the newest position on `subject`, 0 for none."""

    subject: str
    body: bytes
    expected: int


class Conflict(BusError):
    """Somebody else has stored a message on `subject` since."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"{subject!r} has been written by somebody else")
        self.subject = subject


def first_try(member: Member, settings: Settings) -> Request:
    """The one request that most saves are. Only `accepted` says what came of it; if that is None, `append` goes on."""
    return Request(member.subject, member.body, _headers(member.expected), settings.request_timeout_s)


def accepted(message: Message | None) -> int | None:
    """The position, if this answers a first try and says that it was stored."""
    if message is not None and not message.status:
        with suppress(msgspec.DecodeError):
            ack = read_ack(message.data)
            return ack.seq if ack.error is None and ack.seq else None
    return None


async def append(connection: Connection, stream: str, members: Sequence[Member], settings: Settings) -> int:
    """Store all of `members`, next to each other; returns the position of the first.

    Raises Conflict, TooMany and TooLarge (nothing was sent), Misconfigured, Unavailable.
    """
    if len(members) > BATCH_MEMBERS:
        raise TooMany("messages of one save", len(members), BATCH_MEMBERS)
    deadline = time.monotonic() + settings.append_timeout_s
    pause_s = _PAUSE_S
    while True:
        try:
            message = await _send(connection, members, settings.request_timeout_s)
            ack = read_ack(message.data)
            if ack.error is None:
                return ack.seq - len(members) + 1
            reason = ack.error.description
            if ack.error.err_code in CONFLICTS | {ALREADY_COMMITTED}:
                # It may be our own first try, whose answer was lost. In a cluster it may also be nobody's.
                stored = await _settle(connection, stream, members, settings.request_timeout_s)
                if stored is not None:
                    return stored
            elif ack.error.code not in TEMPORARY and ack.error.err_code != _INCOMPLETE:
                raise Misconfigured(f"stream {stream!r} refused a message: {reason}")
        except (Unavailable, NoResponders, msgspec.DecodeError) as error:
            reason = str(error)
        if time.monotonic() + pause_s > deadline:
            raise Unavailable(
                f"nothing was stored within {settings.append_timeout_s:g} s that is known of ({reason}): "
                f"it may still be, so read {members[0].subject!r} before trying again"
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def _send(connection: Connection, members: Sequence[Member], timeout_s: float) -> Message:
    if not connection.is_connected:
        # Nothing is queued for a server that is away: each further try would be one copy more.
        raise Unavailable("the line is down")
    if len(members) == 1:
        [(subject, body, expected)] = members
        return await connection.request(subject, body, headers=_headers(expected), timeout_s=timeout_s)
    batch = uuid4().hex
    headers = [
        _headers(member.expected) | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        for number, member in enumerate(members, 1)
    ]
    headers[-1]["Nats-Batch-Commit"] = "1"
    for member, each in zip(members, headers, strict=True):
        size = len(header_block(each)) + len(member.body)
        if size > connection.max_payload:
            raise TooLarge(f"the message to {member.subject!r}", size, connection.max_payload)
    pending = 0
    for member, each in zip(members[:-1], headers, strict=False):
        connection.publish(member.subject, member.body, headers=each)
        # Small batches leave in one write, so one is open per connection; the server allows 50 in a stream.
        pending += len(member.body)
        if pending > _FLUSH_BYTES:
            await connection.flush(timeout_s)
            pending = 0
    return await connection.request(members[-1].subject, members[-1].body, headers=headers[-1], timeout_s=timeout_s)


def _headers(expected: int) -> dict[str, str]:
    return {"Nats-Expected-Last-Subject-Sequence": str(expected)}


async def _settle(connection: Connection, stream: str, members: Sequence[Member], timeout_s: float) -> int | None:
    """Who stands there? We: the position of our first. Another: Conflict. Nobody whom one can see yet: None."""
    for index, member in enumerate(members):
        found = await newest(connection, stream, member.subject, timeout_s)
        if found is not None and found[1] == member.body:
            return found[0] - index
        if (found[0] if found else 0) != member.expected:
            raise Conflict(member.subject)
    return None

"""What a stream has stored, read straight from it: no consumer, any position, a page at a time.

Source: direct get and batched direct get, ADR-31. A server that is not the leader may answer, a moment behind it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime

import msgspec

from bus.connection import Connection, Message
from bus.errors import BusError, NoResponders, Unavailable

_END_OF_PAGE = 204
_NOT_FOUND = 404
_PAGE = 256  # the most that the server's max_request_batch allows in our configuration
# The server drops a client for which it has to keep 64 MiB.
_PAGE_BYTES = 4 * 2**20


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One message of a stream: its position (from 1), when it was stored by the server's clock, subject and bytes."""

    position: int
    at: datetime
    subject: str
    data: bytes


async def last(connection: Connection, stream: str, subject: str, *, timeout_s: float) -> Stored | None:
    """The newest message on `subject`, if there is one. Raises Unavailable, also if the stream does not answer."""
    try:
        message = await connection.request(_address(stream), _json({"last_by_subj": subject}), timeout_s=timeout_s)
    except NoResponders:
        raise _silent(stream) from None
    if _is_stored(message):
        return _stored(message)
    if message.status == _NOT_FOUND:
        return None
    raise BusError(f"reading {subject!r} of {stream!r}: the server answered {message.status}: {message.headers}")


async def read(
    connection: Connection, stream: str, subject: str, *, since: datetime | None = None, timeout_s: float
) -> AsyncGenerator[Stored, None]:
    """What is stored on `subject` (wildcards allowed), in order, from the beginning or from an instant on.

    Ends with the newest message there is when it gets there. Memory is bounded by a page. Raises Unavailable.
    """
    start: dict[str, object] = {"seq": 1} if since is None else {"start_time": since.isoformat()}
    while True:
        request = _json({**start, "next_by_subj": subject, "batch": _PAGE, "max_bytes": _PAGE_BYTES})
        after = 0
        more = None
        try:
            async with aclosing(connection.request_many(_address(stream), request, timeout_s=timeout_s)) as answers:
                async for message in answers:
                    if _is_stored(message):
                        stored = _stored(message)
                        after = stored.position
                        yield stored
                    elif message.status == _NOT_FOUND:
                        return
                    elif message.status == _END_OF_PAGE:
                        headers = message.headers or {}
                        more = headers.get("Nats-Num-Pending", "0") != "0"
                        after = int(headers.get("Nats-Last-Sequence", after))
                        break
                    else:
                        raise BusError(f"reading {stream!r}: the server answered {message.status}: {message.headers}")
        except NoResponders:
            raise _silent(stream) from None
        if more is None:
            raise Unavailable(f"reading {subject!r} of {stream!r}: the server stopped answering after {after}")
        if not more:
            return
        start = {"seq": after + 1}


def _address(stream: str) -> str:
    return f"$JS.API.DIRECT.GET.{stream}"


def _json(request: dict[str, object]) -> bytes:
    return msgspec.json.encode(request)


def _silent(stream: str) -> Unavailable:
    return Unavailable(f"stream {stream!r} does not answer: it is not there, or its servers are away")


def _is_stored(message: Message) -> bool:
    # Whoever publishes can write a status into the headers; only the server adds a position to them.
    return "Nats-Sequence" in (message.headers or {})


def _stored(message: Message) -> Stored:
    headers = message.headers or {}
    at = datetime.fromisoformat(headers["Nats-Time-Stamp"])
    return Stored(int(headers["Nats-Sequence"]), at, headers["Nats-Subject"], message.data)

"""Reading by position: pages of batched direct get, no consumer on the server, no acknowledgements.

Ids of one aggregate's events are known before they are read, so those pages come without headers, which halves what
reading costs in Python.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from bus.broker.acknowledgement import ApiError
from bus.broker.connection import Connection
from bus.errors import BusError, Misconfigured
from bus.log.record import is_end, read_record
from bus.settings import Settings

PAGE = 500
_PAGE_BYTES = 4 * 2**20
# More than the server counts for one message besides its body: subject, stored headers, its own fields.
_EXTRA_BYTES = 1500
_END_OF_BATCH = 204
_NOT_FOUND = 404


class Item(NamedTuple):
    """One message; its position is 0 if it was read without headers."""

    position: int
    body: bytes


class Page(NamedTuple):
    """Messages in order, the position the page ends at, and whether there may be more after it."""

    items: list[Item]
    last: int
    more: bool


class _State(msgspec.Struct, frozen=True):
    subjects: dict[str, int] = msgspec.field(default_factory=dict)


class _Info(msgspec.Struct, frozen=True):
    state: _State = _State()
    error: ApiError | None = None
    total: int = 0
    limit: int = 0


_info = msgspec.json.Decoder(_Info)


async def page(
    connection: Connection, stream: str, subject: str, settings: Settings, *, after: int, count: int, bare: bool
) -> Page:
    """Up to `count` messages on `subject` behind position `after`. Raises Unavailable."""
    request = {"seq": after + 1, "next_by_subj": subject, "batch": count, "max_bytes": _PAGE_BYTES}
    items, last, pending = await _direct(connection, stream, request | {"no_hdr": bare}, settings)
    size = sum(len(item.body) + _EXTRA_BYTES for item in items)
    # Without headers the server does not count down what is pending; then only a page that was cut short has more.
    more = len(items) >= count or size >= _PAGE_BYTES if bare else pending > 0
    return Page(items, max(last, after), more)


async def exactly(connection: Connection, stream: str, subjects: list[str], settings: Settings) -> list[Item]:
    """The newest message of each of `subjects` that has one, in the order of their positions."""
    items, _, _ = await _direct(connection, stream, {"multi_last": subjects}, settings)
    return items


async def subjects(connection: Connection, stream: str, filter: str, settings: Settings) -> list[str]:
    """Which subjects there are, without what is stored on them."""
    found: list[str] = []
    while True:
        request = msgspec.json.encode({"subjects_filter": filter, "offset": len(found)})
        answer = await connection.request(
            f"$JS.API.STREAM.INFO.{stream}", request, timeout_s=settings.request_timeout_s
        )
        info = _info.decode(answer.data)
        if info.error is not None:
            raise Misconfigured(f"stream {stream!r}: {info.error.description}")
        found.extend(info.state.subjects)
        if len(found) >= info.total or not info.state.subjects:
            return found


async def _direct(
    connection: Connection, stream: str, request: dict[str, object], settings: Settings
) -> tuple[list[Item], int, int]:
    """Messages, the position of the last, and how many are pending (wrong without headers)."""
    bare = request.get("no_hdr", False)
    *messages, end = await connection.request_page(
        f"$JS.API.DIRECT.GET.{stream}",
        msgspec.json.encode(request),
        is_end=is_end,
        timeout_s=settings.request_timeout_s,
    )
    if end.status == _NOT_FOUND:
        return [], 0, 0
    if end.status != _END_OF_BATCH:
        raise BusError(f"reading stream {stream!r}: the server answered {end.status}: {end.headers}")
    items = [Item(0 if bare else read_record(message).position, message.data) for message in messages]
    return items, int(end.headers.get("Nats-Last-Sequence", 0)), int(end.headers.get("Nats-Num-Pending", 0))

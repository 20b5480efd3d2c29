"""The JetStream API: one question, its answer, and what its errors mean for whoever asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from bus.broker.acknowledgement import TEMPORARY, ApiError
from bus.broker.connection import Connection
from bus.broker.patience import patiently
from bus.errors import BusError, Misconfigured, NoResponders, NotFound, Unavailable

API = "$JS.API"
NAME_IN_USE = 10058
NO_STREAM = 10059
NO_CONSUMER = 10014
# The server has two words for a message that is not there.
NOT_THERE = frozenset({10037, 10057})
SECOND_NS = 1_000_000_000


class _State(msgspec.Struct, frozen=True):
    messages: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class _Place(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _Stored(msgspec.Struct, frozen=True):
    seq: int = 0
    data: bytes = b""


class Answer(msgspec.Struct, frozen=True):
    error: ApiError | None = None
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    state: _State = _State()
    total: int = 0
    ts: datetime = datetime.min.replace(tzinfo=UTC)
    created: str = ""
    purged: int = 0
    streams: Sequence[str] | None = None
    delivered: _Place = _Place()
    ack_floor: _Place = _Place()
    num_ack_pending: int = 0
    message: _Stored | None = None


_answer = msgspec.json.Decoder(Answer)


def refusal(what: str, error: ApiError) -> BusError:
    if error.err_code == NO_STREAM:
        return NotFound(f"{what}: there is no such stream")
    if error.code in TEMPORARY:
        return Unavailable(f"{what}: {error.description}")
    return Misconfigured(f"{what}: {error.description}")


async def ask(connection: Connection, subject: str, body: object, timeout_s: float, *, once: bool = False) -> Answer:
    """What the API answers; asked again while nothing comes, unless that would make a difference (`once`)."""
    data = b"" if body is None else msgspec.json.encode(body)
    try:
        if once:
            message = await connection.request(subject, data, timeout_s=timeout_s)
        else:
            inquire = partial(connection.inquire, subject, data, timeout_s=timeout_s)
            message = await patiently(connection, inquire, timeout_s)
    except NoResponders:
        raise Unavailable(
            "this server or account has no JetStream: enable it, or let `phasebus up` start one"
        ) from None
    return _answer.decode(message.data)


async def newest(connection: Connection, stream: str, subject: str, timeout_s: float) -> tuple[int, bytes] | None:
    """The newest message on `subject` (wildcards allowed), position and body, as the stream's leader has it.

    Raises Unavailable, Forbidden, Misconfigured, NotFound.
    """
    answer = await ask(connection, f"{API}.STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout_s)
    if answer.message is not None:
        return answer.message.seq, answer.message.data
    if answer.error is None:
        raise Unavailable(f"stream {stream!r} does not answer")
    if answer.error.err_code in NOT_THERE:
        return None
    raise refusal(f"stream {stream!r}", answer.error)

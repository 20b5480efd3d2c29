"""Streams as the server has them: made as the layout says, checked on every connect; looked at, stored to, purged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from bus.broker.acknowledgement import CONFLICTS, read_ack
from bus.broker.connection import Connection
from bus.errors import Forbidden, Misconfigured, NotFound, Unavailable
from bus.format.subjects import Subjects
from bus.log.jetstream import API, NAME_IN_USE, NO_STREAM, NOT_THERE, ask, refusal
from bus.log.layout import log_config, work_config
from bus.settings import Settings

_BEHIND = 1_000_000_000


class Moved(Exception):
    """The subject is not at the position that was expected any more. Nothing was stored."""


class Info(msgspec.Struct, frozen=True):
    """A stream by the server's own clock: when that was, how many messages it holds, and how many on each subject.

    `last` is the newest position it has given, whether or not a message still stands there.
    `created` is when it was made, as the server writes it: it tells one stream from another of the same name.
    """

    at: datetime
    messages: int
    subjects: dict[str, int]
    last: int
    created: str


async def set_up(connection: Connection, subjects: Subjects, settings: Settings, *, create: bool) -> None:
    """Check what is there, and create what is not. Raises Misconfigured; without `create`, NotFound."""
    for config in (log_config(subjects, settings.replicas), work_config(subjects, settings.replicas)):
        try:
            await ensure_stream(connection, config, settings.request_timeout_s, create=create)
        except (NotFound, Forbidden):
            raise NotFound(f"there is no bus with namespace {subjects.namespace!r} on this server") from None


async def info(connection: Connection, stream: str, timeout_s: float, *, subjects: str = "") -> Info:
    """How a stream stands, by its leader; with the number of messages on each subject that `subjects` matches.

    Raises NotFound if there is none, Unavailable.
    """
    found: dict[str, int] = {}
    while True:
        body = {"subjects_filter": subjects, "offset": len(found)} if subjects else None
        answer = await ask(connection, f"{API}.STREAM.INFO.{stream}", body, timeout_s)
        if answer.error is not None:
            raise refusal(f"stream {stream!r}", answer.error)
        page = answer.state.subjects or {}
        found |= page
        if not page or len(found) >= answer.total:
            return Info(answer.ts, answer.state.messages, found, answer.state.last_seq, answer.created)


async def names(connection: Connection, timeout_s: float) -> list[str]:
    """Every stream of the account. Raises Unavailable, also where no streams are kept."""
    found: list[str] = []
    while True:
        answer = await ask(connection, f"{API}.STREAM.NAMES", {"offset": len(found)}, timeout_s)
        if answer.error is not None:
            raise refusal("listing the streams", answer.error)
        found += answer.streams or []
        if not answer.streams or len(found) >= answer.total:
            return found


async def store(
    connection: Connection, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float
) -> int:
    """Publish once, and wait until a stream has stored it; returns its position there.

    Raises Moved if the headers expect another position, Unavailable and NoResponders: it may have been stored,
    Misconfigured: the server refuses it, for want of space for example.
    """
    message = await connection.request(subject, data, headers=headers, timeout_s=timeout_s)
    try:
        answer = read_ack(message.data)
    except msgspec.DecodeError as error:
        raise Unavailable(f"no stream has answered for {subject!r}: {error}") from error
    if answer.error is None:
        return answer.seq
    if answer.error.err_code in CONFLICTS:
        raise Moved(subject)
    raise refusal(f"storing {subject!r}", answer.error)


async def purge(connection: Connection, stream: str, subject: str, timeout_s: float, *, upto: int | None = None) -> int:
    """Remove what is on `subject`, all of it or up to and including a position; returns how many there were.

    Raises Unavailable, Forbidden, NotFound, Misconfigured.
    """
    body = {"filter": subject} | ({"seq": upto + 1} if upto is not None else {})
    answer = await ask(connection, f"{API}.STREAM.PURGE.{stream}", body, timeout_s, once=True)
    if answer.error is not None:
        raise refusal(f"purging {subject!r} of {stream!r}", answer.error)
    return answer.purged


async def remove(connection: Connection, stream: str, position: int, timeout_s: float) -> bool:
    """Take out the message at a position; returns whether it was there. Raises Unavailable, Misconfigured."""
    body = {"seq": position, "no_erase": True}
    answer = await ask(connection, f"{API}.STREAM.MSG.DELETE.{stream}", body, timeout_s, once=True)
    if answer.error is not None and answer.error.err_code not in NOT_THERE:
        raise refusal(f"removing {position} of {stream!r}", answer.error)
    return answer.error is None


async def waiting(connection: Connection, stream: str, subjects: str, timeout_s: float) -> int:
    """How many subjects have something on them, of those that `subjects` matches. Raises NotFound, Unavailable."""
    # Behind the last: it is told how many there are, and none of them.
    body = {"subjects_filter": subjects, "offset": _BEHIND}
    answer = await ask(connection, f"{API}.STREAM.INFO.{stream}", body, timeout_s)
    if answer.error is not None:
        raise refusal(f"stream {stream!r}", answer.error)
    return answer.total


async def ensure_stream(
    connection: Connection, config: dict[str, Any], timeout_s: float, *, create: bool = True
) -> None:
    """One stream as `config` wants it. Raises Misconfigured; without `create`, NotFound; Forbidden, Unavailable."""
    name = config["name"]
    # Looked at first: a login that may only read can look, too.
    answer = await ask(connection, f"{API}.STREAM.INFO.{name}", None, timeout_s)
    if create and answer.error is not None and answer.error.err_code == NO_STREAM:
        answer = await ask(connection, f"{API}.STREAM.CREATE.{name}", config, timeout_s)
    if answer.error is not None and answer.error.err_code == NAME_IN_USE:
        # Somebody else was quicker.
        answer = await ask(connection, f"{API}.STREAM.INFO.{name}", None, timeout_s)
    if answer.error is not None and answer.error.err_code == NO_STREAM:
        raise NotFound(f"there is no stream {name!r}")
    if answer.error is not None:
        raise Misconfigured(f"stream {name!r}: {answer.error.description}")
    for field, wanted in config.items():
        actual = answer.config.get(field)
        if field == "subjects":
            wanted, actual = sorted(wanted), sorted(actual or [])  # noqa: PLW2901
        if field == "num_replicas" and actual != wanted:
            raise Misconfigured(
                f"stream {name!r} has {actual} copies, this process wants {wanted}: start it with "
                f"PHASEBUS_REPLICAS={actual}, the same in every process, or alter the stream"
            )
        if actual != wanted:
            raise Misconfigured(
                f"stream {name!r} has {field} = {actual!r}, the bus needs {wanted!r}: "
                "correct the stream, or choose another PHASEBUS_NAMESPACE"
            )

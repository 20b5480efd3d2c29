"""The streams the bus stands on: what they promise, set up on first use and checked on every connect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from bus.broker.acknowledgement import CONFLICTS, TEMPORARY, ApiError, read_ack
from bus.broker.connection import Connection
from bus.errors import BusError, Forbidden, Misconfigured, NoResponders, NotFound, Unavailable
from bus.format.subjects import Subjects
from bus.settings import Settings

_NAME_IN_USE = 10058
_NO_STREAM = 10059
_NO_CONSUMER = 10014
# The server has two words for a message that is not there.
_NOT_THERE = frozenset({10037, 10057})
_SECOND_NS = 1_000_000_000
_WAITING = 10_000
BELL = "bell"
"""The consumer of what has rung."""
_API = "$JS.API"
_BEHIND = 1_000_000_000
EVERYBODY = "all"
"""The group of a capability's consumer that every instance belongs to."""


class Moved(Exception):
    """The subject is not at the position that was expected any more. Nothing was stored."""


class _State(msgspec.Struct, frozen=True):
    messages: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class _Place(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _Answer(msgspec.Struct, frozen=True):
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


_answer = msgspec.json.Decoder(_Answer)


def log_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The log: nothing in it can be changed or removed one by one, and no limit drops anything.

    Purging is allowed to the operator's login alone: it is how what was archived leaves the log
    (`bus.archives.archiving`).
    """
    return {
        "name": subjects.stream,
        "subjects": subjects.logged(),
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "deny_delete": True,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_msg_ttl": True,
        # A limit, or a message that replaces those before it, would remove events without a word.
        "allow_rollup_hdrs": False,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        # One for each subscription of an agent. The limit is 1,000 unless it is stated.
        "max_consumers": 100_000,
        # What is stored goes out once more for whoever watches: no consumer state on the server, no acknowledgements.
        "republish": {"src": f"{subjects.namespace}.>", "dest": f"live.{subjects.namespace}.>"},
    }


def work_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """Work waiting to be taken. It can be derived from the log again, so it does not wait for the disk."""
    relaxed = {"storage": "file", "persist_mode": "async"} if replicas == 1 else {"storage": "memory"}
    return {
        "name": subjects.work_stream,
        "subjects": [subjects.all_work],
        "retention": "workqueue",
        "num_replicas": replicas,
        # One message per attempt: publishing it again while it is still there is refused, so it is harmless.
        "discard": "new",
        "max_msgs_per_subject": 1,
        "discard_new_per_subject": True,
        "allow_direct": True,
        # The limit is 1,000 unless it is stated; one consumer per capability stays far below.
        "max_consumers": 100_000,
        **relaxed,
    }


def payloads_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """An object store as every NATS client knows it (ADR-20): chunks, and one message about each object."""
    bucket = subjects.payloads_bucket
    return {
        "name": f"OBJ_{bucket}",
        "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }


def timers_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """What the server is to ring for, and what has rung and waits to be heard. All of it follows from the log.

    A stream of its own: message schedules need rollup, and a log whose events can be rolled up is none.
    """
    return {
        "name": subjects.timers_stream,
        "subjects": [subjects.all_timers],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_rollup_hdrs": True,
    }


def cache_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """Where outputs are found that can be used again. It follows from the log, and losing it costs time only."""
    relaxed = {"persist_mode": "async"} if replicas == 1 else {}
    return {
        "name": subjects.cache_stream,
        "subjects": [subjects.all_cached],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        # The newest counts; of very many the oldest go.
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_msgs": 1_000_000,
        "allow_direct": True,
        "allow_msg_ttl": True,
        **relaxed,
    }


def leases_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The bucket of leases, whose keys end by themselves if nobody renews them."""
    return {**_bucket_config(subjects.leases_bucket, replicas), "allow_msg_ttl": True}


def limits_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The bucket of limits: one small value for each, written over at the version that was seen."""
    return _bucket_config(subjects.limits_bucket, replicas)


def _bucket_config(bucket: str, replicas: int) -> dict[str, Any]:
    """A key-value bucket as every NATS client knows it (ADR-8)."""
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "max_msgs_per_subject": 1,
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
    }


async def set_up(connection: Connection, subjects: Subjects, settings: Settings, *, create: bool) -> None:
    """Check what is there, and create what is not. Raises Misconfigured; without `create`, NotFound."""
    for config in (log_config(subjects, settings.replicas), work_config(subjects, settings.replicas)):
        try:
            await ensure_stream(connection, config, settings.request_timeout_s, create=create)
        except (NotFound, Forbidden):
            raise NotFound(f"there is no bus with namespace {subjects.namespace!r} on this server") from None


async def set_up_work(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The work stream alone: it is made again when it was lost."""
    await ensure_stream(connection, work_config(subjects, settings.replicas), settings.request_timeout_s, create=True)


async def set_up_payloads(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The bucket for large payloads: made when the first one is met, since many namespaces never need it."""
    config = payloads_config(subjects, settings.replicas)
    await ensure_stream(connection, config, settings.request_timeout_s, create=True)


async def set_up_limits(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The bucket for limits: made when the first one is used, since many namespaces never need it."""
    config = limits_config(subjects, settings.replicas)
    await ensure_stream(connection, config, settings.request_timeout_s, create=True)


async def set_up_timers(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The stream for schedules: made when the first one is, since many namespaces never need it."""
    config = timers_config(subjects, settings.replicas)
    await ensure_stream(connection, config, settings.request_timeout_s, create=True)


async def set_up_cache(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The stream for the cache: made when somebody serves what may be cached, since many namespaces never need it."""
    config = cache_config(subjects, settings.replicas)
    await ensure_stream(connection, config, settings.request_timeout_s, create=True)


async def set_up_leases(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The bucket of leases: made when somebody first wants one."""
    config = leases_config(subjects, settings.replicas)
    await ensure_stream(connection, config, settings.request_timeout_s, create=True)


async def info(connection: Connection, stream: str, timeout_s: float, *, subjects: str = "") -> Info:
    """How a stream stands, by its leader; with the number of messages on each subject that `subjects` matches.

    Raises NotFound if there is none, Unavailable.
    """
    found: dict[str, int] = {}
    while True:
        body = {"subjects_filter": subjects, "offset": len(found)} if subjects else None
        answer = await _ask(connection, f"{_API}.STREAM.INFO.{stream}", body, timeout_s)
        if answer.error is not None:
            raise _refusal(f"stream {stream!r}", answer.error)
        page = answer.state.subjects or {}
        found |= page
        if not page or len(found) >= answer.total:
            return Info(answer.ts, answer.state.messages, found, answer.state.last_seq, answer.created)


async def names(connection: Connection, timeout_s: float) -> list[str]:
    """Every stream of the account. Raises Unavailable, also where no streams are kept."""
    found: list[str] = []
    while True:
        answer = await _ask(connection, f"{_API}.STREAM.NAMES", {"offset": len(found)}, timeout_s)
        if answer.error is not None:
            raise _refusal("listing the streams", answer.error)
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
    raise _refusal(f"storing {subject!r}", answer.error)


async def purge(connection: Connection, stream: str, subject: str, timeout_s: float, *, upto: int | None = None) -> int:
    """Remove what is on `subject`, all of it or up to and including a position; returns how many there were.

    Raises Unavailable, Forbidden, NotFound, Misconfigured.
    """
    body = {"filter": subject} | ({"seq": upto + 1} if upto is not None else {})
    answer = await _ask(connection, f"{_API}.STREAM.PURGE.{stream}", body, timeout_s)
    if answer.error is not None:
        raise _refusal(f"purging {subject!r} of {stream!r}", answer.error)
    return answer.purged


async def remove(connection: Connection, stream: str, position: int, timeout_s: float) -> bool:
    """Take out the message at a position; returns whether it was there. Raises Unavailable, Misconfigured."""
    body = {"seq": position, "no_erase": True}
    answer = await _ask(connection, f"{_API}.STREAM.MSG.DELETE.{stream}", body, timeout_s)
    if answer.error is not None and answer.error.err_code not in _NOT_THERE:
        raise _refusal(f"removing {position} of {stream!r}", answer.error)
    return answer.error is None


def consumer_of(capability: str, level: str = "normal", row: int = 0) -> str:
    """The name of the consumer of a capability's work, as it waits at a level, in a row."""
    name = capability.replace(".", ":")
    return name if (level, row) == ("normal", 0) else f"{name}!{level}!{row}"


async def waiting(connection: Connection, stream: str, subjects: str, timeout_s: float) -> int:
    """How many subjects have something on them, of those that `subjects` matches. Raises NotFound, Unavailable."""
    # Behind the last: it is told how many there are, and none of them.
    body = {"subjects_filter": subjects, "offset": _BEHIND}
    answer = await _ask(connection, f"{_API}.STREAM.INFO.{stream}", body, timeout_s)
    if answer.error is not None:
        raise _refusal(f"stream {stream!r}", answer.error)
    return answer.total


async def passed_by(connection: Connection, stream: str, consumer: str, timeout_s: float) -> int:
    """Up to which position a consumer will deliver nothing more, whatever is there. Raises NotFound, Unavailable."""
    answer = await _ask(connection, f"{_API}.CONSUMER.INFO.{stream}.{consumer}", None, timeout_s)
    if answer.error is not None and answer.error.err_code == _NO_CONSUMER:
        raise NotFound(f"stream {stream!r} has no consumer {consumer!r}")
    if answer.error is not None:
        raise _refusal(f"consumer {consumer!r} of {stream!r}", answer.error)
    return answer.ack_floor.stream_seq if answer.num_ack_pending else answer.delivered.stream_seq


async def ensure_consumer(
    connection: Connection,
    subjects: Subjects,
    capability: str,
    settings: Settings,
    *,
    level: str = "normal",
    row: int = 0,
    inactive_s: float | None = None,
) -> str:
    """The consumer of one queue of a capability's work, shared by all instances; returns its name.

    With `inactive_s` the server forgets it when nobody has asked for so long; what waits there stays.
    """
    name = consumer_of(capability, level, row)
    queue = subjects.queue(capability, level, row)
    is_main = name == consumer_of(capability)
    config = {
        "durable_name": name,
        "name": name,
        # Whoever asks at the main one also gets what is no work, and buries it.
        **({"filter_subjects": [queue, *subjects.astray(capability)]} if is_main else {"filter_subject": queue}),
        "ack_policy": "explicit",
        # From delivery to `phase.started`; who dies in between loses the message to the next in line.
        "ack_wait": int(settings.lease_s * _SECOND_NS),
        "max_deliver": -1,
        "max_ack_pending": 10_000,
        # One question of each instance; of more than 512 the server would refuse the rest.
        "max_waiting": _WAITING,
        # Who asks with a lower number is served first; who asks with the same one, in turn.
        "priority_groups": [EVERYBODY],
        "priority_policy": "prioritized",
    }
    if inactive_s is not None:
        config["inactive_threshold"] = int(inactive_s * _SECOND_NS)
    try:
        await _create_consumer(connection, subjects.work_stream, config, settings)
    except NotFound:
        await set_up_work(connection, subjects, settings)
        await _create_consumer(connection, subjects.work_stream, config, settings)
    return name


async def ensure_lane(
    connection: Connection, subjects: Subjects, capability: str, lane: int, settings: Settings
) -> str:
    """The consumer of one lane of an ordered capability, shared by all instances; returns its name."""
    name = f"line!{capability.replace('.', ':')}!{lane}"
    config = {
        "durable_name": name,
        "name": name,
        "filter_subject": subjects.line(capability, lane),
        "ack_policy": "explicit",
        # Who sees a run through says so all the time; who dies leaves it to the next after this.
        "ack_wait": int(settings.lease_s * _SECOND_NS),
        "max_deliver": -1,
        # One after the other, each until it has ended.
        "max_ack_pending": 1,
        "max_waiting": _WAITING,
        "priority_groups": [EVERYBODY],
        "priority_policy": "prioritized",
    }
    await _create_consumer(connection, subjects.stream, config, settings)
    return name


async def ensure_subscription(
    connection: Connection,
    subjects: Subjects,
    name: str,
    capability: str,
    topics: str,
    after: int | Literal["now", "start"],
    settings: Settings,
) -> None:
    """The consumer that remembers how far a subscription is. What it was made with is not changed."""
    begin: dict[str, Any]
    match after:
        case "now":
            begin = {"deliver_policy": "new"}
        case "start":
            begin = {"deliver_policy": "all"}
        case position:
            begin = {"deliver_policy": "by_start_sequence", "opt_start_seq": position + 1}
    config = {
        "durable_name": name,
        "name": name,
        # What it could not read is told again to nobody else.
        "filter_subjects": [subjects.topics(topics), subjects.again(capability)],
        "ack_policy": "explicit",
        # Who dies between the run's beginning and the acknowledgement leaves it to the next: it finds the run there.
        "ack_wait": int(settings.lease_s * _SECOND_NS),
        "max_deliver": -1,
        "max_ack_pending": 1_000,
        **begin,
    }
    await _create_consumer(connection, subjects.stream, config, settings)


async def ensure_bell(connection: Connection, subjects: Subjects, settings: Settings) -> str:
    """The stream for schedules, and the consumer of what has rung; returns the consumer's name."""
    config = {
        "durable_name": BELL,
        "name": BELL,
        "filter_subject": subjects.all_rung,
        "ack_policy": "explicit",
        # Who dies between the run's start and the acknowledgement leaves it to the next leader.
        "ack_wait": int(settings.lease_s * _SECOND_NS),
        "max_deliver": -1,
        # One after the other: whether a run of the occurrence before is open can be told only when that is settled.
        "max_ack_pending": 1,
    }
    await set_up_timers(connection, subjects, settings)
    await _create_consumer(connection, subjects.timers_stream, config, settings)
    return BELL


async def _create_consumer(connection: Connection, stream: str, config: dict[str, Any], settings: Settings) -> None:
    name = config["name"]
    body = {"stream_name": stream, "config": config, "action": ""}
    answer = await _ask(connection, f"{_API}.CONSUMER.CREATE.{stream}.{name}", body, settings.request_timeout_s)
    if answer.error is not None and answer.error.err_code == _NO_STREAM:
        raise NotFound(f"there is no stream {stream!r}")
    if answer.error is not None:
        raise Misconfigured(f"consumer {name!r} of {stream}: {answer.error.description}")


async def ensure_stream(connection: Connection, config: dict[str, Any], timeout_s: float, *, create: bool) -> None:
    """One stream as `config` wants it. Raises Misconfigured; without `create`, NotFound; Forbidden, Unavailable."""
    name = config["name"]
    # Looked at first: a login that may only read can look, too.
    answer = await _ask(connection, f"{_API}.STREAM.INFO.{name}", None, timeout_s)
    if create and answer.error is not None and answer.error.err_code == _NO_STREAM:
        answer = await _ask(connection, f"{_API}.STREAM.CREATE.{name}", config, timeout_s)
    if answer.error is not None and answer.error.err_code == _NAME_IN_USE:
        # Somebody else was quicker.
        answer = await _ask(connection, f"{_API}.STREAM.INFO.{name}", None, timeout_s)
    if answer.error is not None and answer.error.err_code == _NO_STREAM:
        raise NotFound(f"there is no stream {name!r}")
    if answer.error is not None:
        raise Misconfigured(f"stream {name!r}: {answer.error.description}")
    for field, wanted in config.items():
        actual = answer.config.get(field)
        if field == "subjects":
            wanted, actual = sorted(wanted), sorted(actual or [])  # noqa: PLW2901
        if actual != wanted:
            raise Misconfigured(
                f"stream {name!r} has {field} = {actual!r}, the bus needs {wanted!r}: "
                "correct the stream, or choose another PHASEBUS_NAMESPACE"
            )


def _refusal(what: str, error: ApiError) -> BusError:
    if error.err_code == _NO_STREAM:
        return NotFound(f"{what}: there is no such stream")
    if error.code in TEMPORARY:
        return Unavailable(f"{what}: {error.description}")
    return Misconfigured(f"{what}: {error.description}")


async def _ask(connection: Connection, subject: str, body: object, timeout_s: float) -> _Answer:
    data = b"" if body is None else msgspec.json.encode(body)
    try:
        message = await connection.request(subject, data, timeout_s=timeout_s)
    except NoResponders:
        raise Unavailable(
            "this server or account has no JetStream: enable it, or let `phasebus up` start one"
        ) from None
    return _answer.decode(message.data)

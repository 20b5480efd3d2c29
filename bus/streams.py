"""The streams the bus stands on: what they promise, set up on first use and checked on every connect."""

from __future__ import annotations

from typing import Any

import msgspec

from bus.connection import Connection
from bus.errors import Misconfigured, NoResponders, NotFound, Unavailable
from bus.settings import Settings
from bus.subjects import Subjects

_NAME_IN_USE = 10058
_NO_STREAM = 10059
_SECOND_NS = 1_000_000_000
_API = "$JS.API"


class ApiError(msgspec.Struct, frozen=True):
    """An error as JetStream's API words it."""

    code: int
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct, frozen=True):
    error: ApiError | None = None
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    created: str = ""
    purged: int = 0


_answer = msgspec.json.Decoder(_Answer)


def log_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The log: nothing in it can be changed or removed one by one, and no limit drops anything.

    Purging is allowed to the operator's login alone: it is how what was archived leaves the log (`bus.archiving`).
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


async def set_up(connection: Connection, subjects: Subjects, settings: Settings, *, create: bool) -> None:
    """Check what is there, and create what is not. Raises Misconfigured; without `create`, NotFound."""
    for config in (log_config(subjects, settings.replicas), work_config(subjects, settings.replicas)):
        try:
            await _ensure(connection, config, settings.request_timeout_s, create=create)
        except NotFound:
            raise NotFound(f"there is no bus with namespace {subjects.namespace!r} on this server") from None


async def set_up_work(connection: Connection, subjects: Subjects, settings: Settings) -> None:
    """The work stream alone: it is made again when it was lost."""
    await _ensure(connection, work_config(subjects, settings.replicas), settings.request_timeout_s, create=True)


async def created(connection: Connection, subjects: Subjects, timeout_s: float) -> str:
    """When the log's stream was made: tells one log from another. Raises Misconfigured, Unavailable."""
    answer = await _ask(connection, f"{_API}.STREAM.INFO.{subjects.stream}", None, timeout_s)
    if answer.error is not None:
        raise Misconfigured(f"stream {subjects.stream!r}: {answer.error.description}")
    return answer.created


async def remove(connection: Connection, subjects: Subjects, subject: str, upto: int, timeout_s: float) -> int:
    """Take what is on a subject up to and including a position out of the log; returns how many there were.

    Raises Misconfigured if the log does not allow it, Unavailable: also if the login does not, which the server says
    to nobody who waits.
    """
    body = {"filter": subject, "seq": upto + 1}
    answer = await _ask(connection, f"{_API}.STREAM.PURGE.{subjects.stream}", body, timeout_s)
    if answer.error is not None:
        raise Misconfigured(f"{subject!r} can't leave stream {subjects.stream!r}: {answer.error.description}")
    return answer.purged


async def ensure_consumer(connection: Connection, subjects: Subjects, capability: str, settings: Settings) -> str:
    """The consumer of a capability's work, shared by all instances; returns its name."""
    name = capability.replace(".", ":")
    config = {
        "durable_name": name,
        "name": name,
        "filter_subject": subjects.work_for(capability),
        "ack_policy": "explicit",
        # From delivery to `phase.started`; who dies in between loses the message to the next in line.
        "ack_wait": int(settings.lease_s * _SECOND_NS),
        "max_deliver": -1,
        "max_ack_pending": 10_000,
    }
    body = {"stream_name": subjects.work_stream, "config": config, "action": ""}
    subject = f"{_API}.CONSUMER.CREATE.{subjects.work_stream}.{name}"
    answer = await _ask(connection, subject, body, settings.request_timeout_s)
    if answer.error is not None and answer.error.err_code == _NO_STREAM:
        await set_up_work(connection, subjects, settings)
        answer = await _ask(connection, subject, body, settings.request_timeout_s)
    if answer.error is not None:
        raise Misconfigured(f"consumer {name!r} of {subjects.work_stream}: {answer.error.description}")
    return name


async def _ensure(connection: Connection, config: dict[str, Any], timeout_s: float, *, create: bool) -> None:
    name = config["name"]
    verb, body = ("CREATE", config) if create else ("INFO", None)
    answer = await _ask(connection, f"{_API}.STREAM.{verb}.{name}", body, timeout_s)
    if answer.error is not None and answer.error.err_code == _NAME_IN_USE:
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


async def _ask(connection: Connection, subject: str, body: object, timeout_s: float) -> _Answer:
    data = b"" if body is None else msgspec.json.encode(body)
    try:
        message = await connection.request(subject, data, timeout_s=timeout_s)
    except NoResponders:
        raise Unavailable(
            "this server or account has no JetStream: enable it, or let `phasebus up` start one"
        ) from None
    return _answer.decode(message.data)

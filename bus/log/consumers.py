"""The consumers of the bus, made by whoever pulls first: of capabilities, of lanes, of subscriptions, of what rings."""

from __future__ import annotations

from typing import Any, Literal

from bus.broker.connection import Connection
from bus.errors import Misconfigured, NotFound
from bus.format.subjects import Subjects
from bus.log.jetstream import API, NO_CONSUMER, NO_STREAM, SECOND_NS, ask, refusal
from bus.log.layout import timers_config, work_config
from bus.log.streams import ensure_stream
from bus.settings import Settings

BELL = "bell"
"""The consumer of what has rung."""
EVERYBODY = "all"
"""The group of a capability's consumer that every instance belongs to."""
_WAITING = 10_000


def consumer_of(capability: str, level: str = "normal", row: int = 0) -> str:
    """The name of the consumer of a capability's work, as it waits at a level, in a row."""
    name = capability.replace(".", ":")
    return name if (level, row) == ("normal", 0) else f"{name}!{level}!{row}"


async def passed_by(connection: Connection, stream: str, consumer: str, timeout_s: float) -> int:
    """Up to which position a consumer will deliver nothing more, whatever is there. Raises NotFound, Unavailable."""
    answer = await ask(connection, f"{API}.CONSUMER.INFO.{stream}.{consumer}", None, timeout_s)
    if answer.error is not None and answer.error.err_code == NO_CONSUMER:
        raise NotFound(f"stream {stream!r} has no consumer {consumer!r}")
    if answer.error is not None:
        raise refusal(f"consumer {consumer!r} of {stream!r}", answer.error)
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
        "ack_wait": int(settings.lease_s * SECOND_NS),
        "max_deliver": -1,
        "max_ack_pending": 10_000,
        # One question of each instance; of more than 512 the server would refuse the rest.
        "max_waiting": _WAITING,
        # Who asks with a lower number is served first; who asks with the same one, in turn.
        "priority_groups": [EVERYBODY],
        "priority_policy": "prioritized",
    }
    if inactive_s is not None:
        config["inactive_threshold"] = int(inactive_s * SECOND_NS)
    try:
        await _create_consumer(connection, subjects.work_stream, config, settings)
    except NotFound:
        await ensure_stream(connection, work_config(subjects, settings.replicas), settings.request_timeout_s)
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
        "ack_wait": int(settings.lease_s * SECOND_NS),
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
        "ack_wait": int(settings.lease_s * SECOND_NS),
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
        "ack_wait": int(settings.lease_s * SECOND_NS),
        "max_deliver": -1,
        # One after the other: whether a run of the occurrence before is open can be told only when that is settled.
        "max_ack_pending": 1,
    }
    await ensure_stream(connection, timers_config(subjects, settings.replicas), settings.request_timeout_s)
    await _create_consumer(connection, subjects.timers_stream, config, settings)
    return BELL


async def _create_consumer(connection: Connection, stream: str, config: dict[str, Any], settings: Settings) -> None:
    name = config["name"]
    body = {"stream_name": stream, "config": config, "action": ""}
    answer = await ask(connection, f"{API}.CONSUMER.CREATE.{stream}.{name}", body, settings.request_timeout_s)
    if answer.error is not None and answer.error.err_code == NO_STREAM:
        raise NotFound(f"there is no stream {stream!r}")
    if answer.error is not None:
        raise Misconfigured(f"consumer {name!r} of {stream}: {answer.error.description}")

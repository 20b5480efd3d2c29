"""Topics: facts that are published for whoever wants to know, kept in the log, and read from any position."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Generic, TypeVar, overload
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import MalformedMessage
from bus.format.envelope import UNDECODABLE, Envelope, envelope
from bus.format.messages import MESSAGES
from bus.log.durability import Durability
from bus.log.log import Log
from bus.log.streams import info
from bus.runs.causality import served
from bus.runs.steering import as_json
from bus.settings import Settings

logger = structlog.get_logger(__name__)

PUBLISHED = "topic.published.v1"
T = TypeVar("T")


class Published(msgspec.Struct, frozen=True):
    """A fact that was accepted: it is in the log at `position`, as durable as `durability` says."""

    topic: str
    position: int
    durability: Durability


class News(msgspec.Struct, Generic[T], frozen=True):
    """A fact as a subscriber gets it. `position` is where to go on from: `subscribe(..., after=news.position)`."""

    topic: str
    value: T
    position: int
    at: datetime
    source: str
    correlation: str
    id: str


class Topics:
    """The verbs about topics; a part of the client."""

    connection: Connection
    log: Log
    settings: Settings
    source: str
    durability: Durability

    async def publish(self, topic: str, value: object, *, id: str | None = None) -> Published:
        """Tell everybody who subscribes, now or later; it is durable when this returns.

        `topic` is a dotted name, such as `orders.created`. The same `id` on it again, within two minutes, is not
        published twice. Raises InvalidName, TooLarge, Unavailable.
        """
        subject = self.log.subjects.topic(topic)
        facts = served()
        # The server knows ids for the whole log: another topic, or something else that is stored, may have the same.
        identity = f"{topic}/{id}" if id else uuid4().hex
        message = envelope(
            PUBLISHED,
            as_json(value),
            id=identity,
            source=self.source,
            time=utc_now(),
            correlationid=facts.correlation if facts is not None else identity,
            causationid=facts.causation if facts is not None else None,
        )
        return Published(topic, await self.log.append(subject, message), self.durability)

    @overload
    def subscribe(self, topics: str, gives: type[T], *, after: int | None = ...) -> AsyncGenerator[News[T], None]: ...

    @overload
    def subscribe(
        self, topics: str, gives: None = ..., *, after: int | None = ...
    ) -> AsyncGenerator[News[Any], None]: ...

    async def subscribe(
        self, topics: str, gives: Any = None, *, after: int | None = None
    ) -> AsyncGenerator[News[Any], None]:
        """What is published on `topics`, in order, for ever: `orders.*` is one name more, `orders.>` one or more.

        From after a position of the log (0: all there ever was), or from when this is first awaited. Values are decoded
        as `gives`; what is not one is passed over, and logged. Close it (`contextlib.aclosing`) if you leave it early.
        Raises InvalidName, Unavailable.
        """
        subjects = self.log.subjects
        pattern = subjects.topics(topics)
        if after is None:
            after = (await info(self.connection, subjects.stream, self.settings.request_timeout_s)).last
        async with aclosing(self.log.follow(pattern, after=after)) as records:
            async for record in records:
                try:
                    message = record.envelope()
                    value = value_of(message, gives)
                except MalformedMessage as error:
                    logger.warning(
                        "record set aside", subject=record.subject, position=record.position, error=str(error)
                    )
                    continue
                yield News(
                    topic=subjects.topic_of(record.subject),
                    value=value,
                    position=record.position,
                    at=message.time,
                    source=message.source,
                    correlation=message.correlationid or message.id,
                    id=message.id,
                )


def value_of(message: Envelope, gives: Any = None) -> Any:
    """What was published. Raises MalformedMessage."""
    if message.type != PUBLISHED:
        raise MalformedMessage(f"{message.type!r} is not what is published on a topic")
    try:
        return MESSAGES.decode(message.data, gives) if gives is not None else msgspec.json.decode(message.data)
    except UNDECODABLE as error:
        raise MalformedMessage(f"not what was subscribed to: {error}") from error

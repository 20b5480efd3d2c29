"""Subscriptions: what an agent hears of topics becomes work of its own, once, and then has all that work has.

The server remembers how far each subscription is, for all instances of the agent together. A fact is acknowledged when
the run that stands for it is in the log. Its id follows from subscription and position, so what is delivered again
finds its run there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any

import msgspec
import structlog

from bus.broker.pull import Delivery, Intake
from bus.client import Client
from bus.errors import BusError, MalformedMessage, Refused
from bus.format.envelope import Envelope, decode
from bus.format.payload import is_inline
from bus.handlers.agent import Agent, Subscribed
from bus.log.consumers import ensure_subscription
from bus.messages.topics import value_of
from bus.rules.commands import Begin
from bus.rules.plan import TASK, Phase, Plan
from bus.rules.references import ref
from bus.runs.hearing import Again, heard_as, read_again
from bus.runs.task import WORK
from bus.worker.attempts import Attempts

logger = structlog.get_logger(__name__)

_AT_ONCE = 64
_NOT_NOW_S = 1.0


class Heard(msgspec.Struct, frozen=True):
    """The input of the run: the fact and where it stands. The handler gets the value."""

    topic: str
    position: int
    value: msgspec.Raw


class Subscription:
    """One subscription of one agent, as one instance serves it."""

    def __init__(
        self, client: Client, agent: Agent, subscribed: Subscribed, attempts: Attempts, tasks: asyncio.TaskGroup
    ) -> None:
        self._client = client
        self._agent = agent
        self._subscribed = subscribed
        self._attempts = attempts
        self._tasks = tasks
        self._intake: Intake | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Pull what is published from now on. Raises Unavailable, Misconfigured."""
        if self._intake is not None:
            return
        client = self._client
        await self._ensure()
        intake = self._intake = Intake(
            client.connection,
            client.subjects.stream,
            self._consumer,
            deliver=lambda delivery: self._take(intake, delivery),
            missing=self._ensure,
        )
        intake.grant(_AT_ONCE)
        self._begin(intake.run())

    def close(self) -> None:
        """Pull nothing more. What has been delivered still becomes work, for whoever takes it."""
        if self._intake is not None:
            self._intake.stop()
            self._intake = None

    def cancel(self) -> None:
        """End what is left: what is not acknowledged is delivered again."""
        self.close()
        for task in self._running:
            task.cancel()

    def _take(self, intake: Intake, delivery: Delivery) -> None:
        task = self._begin(self._hear(delivery))
        task.add_done_callback(lambda _: intake.grant(1))

    def _begin(self, doing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(doing)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _ensure(self) -> None:
        client, subscribed = self._client, self._subscribed
        await ensure_subscription(
            client.connection,
            client.subjects,
            self._consumer,
            subscribed.capability,
            subscribed.topics,
            subscribed.after,
            client.settings,
        )

    @property
    def _consumer(self) -> str:
        return f"{self._agent.name}:{self._subscribed.name}"

    async def _hear(self, delivery: Delivery) -> None:
        """Make a fact the agent's work, then acknowledge it."""
        client, capability = self._client, self._subscribed.capability
        again: Again | None = None
        try:
            subject, position, body = delivery.message.subject, delivery.stream_sequence, delivery.message.data
            if subject == client.subjects.again(capability):
                again = read_again(await self._opened(body))
                subject, position, body = again.subject, again.origin, again.body
            message = await self._opened(body)
            value_of(message)
            heard = Heard(client.subjects.topic_of(subject), position, message.data)
            story = message.correlationid or message.id
            begin = Begin(_plan(capability), msgspec.Raw(msgspec.json.encode(heard)), correlation=story)
            await client.runs.submit(heard_as(capability, position), begin, causation=message.id)
        except MalformedMessage as error:
            await self._attempts.bury(capability, delivery, str(error), again)
            return
        except Refused:
            logger.debug("heard before", position=position)
        except BusError as error:
            logger.warning("not heard", position=delivery.stream_sequence, error=str(error))
            delivery.nak(_NOT_NOW_S)
            return
        delivery.ack()

    async def _opened(self, body: bytes) -> Envelope:
        # What is large is not in the message, but referred to.
        return decode(body if is_inline(body) else await self._client.log.unpack(body))


@lru_cache(maxsize=100)
def _plan(capability: str) -> Plan:
    return Plan(TASK, phases=[Phase(WORK, capability, input=ref("input.value"))])

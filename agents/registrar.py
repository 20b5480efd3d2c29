"""The registrar: which instances have registered and not ended. It says of those that are gone that they are lost.

It writes behind what it has read of an instance and nothing else, so what the instance says itself at that moment, or
another registrar, goes before.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Iterator
from contextlib import aclosing
from datetime import datetime
from uuid import uuid4

import msgspec
import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.format.envelope import envelope
from bus.log.log import VersionConflict
from bus.log.record import Record
from bus.registry.arrivals import event_in
from bus.registry.card import AGENT_LOST, AgentLost, Card, Loss, without_schemas
from bus.signals import Running, running

logger = structlog.get_logger(__name__)


class _Registered(msgspec.Struct, frozen=True):
    agent: str
    position: int
    at: datetime
    host: str
    pid: int
    card: bytes
    noted_s: float


class Registrar:
    """As of what was followed so far. Positions before `floor` need not be read again."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._registered: dict[str, _Registered] = {}
        self._position = 0
        self._moved = asyncio.Event()

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._registered))

    def __len__(self) -> int:
        return len(self._registered)

    def cards(self) -> Iterator[tuple[str, bytes]]:
        """Each instance and its card, without schemas, as JSON."""
        return ((instance, each.card) for instance, each in self._registered.items())

    async def has_read(self, position: int) -> None:
        """Wait until the log was followed up to a position."""
        while self._position < position:
            self._moved.clear()
            await self._moved.wait()

    @property
    def floor(self) -> int:
        """A position up to which every instance has ended."""
        return min((each.position - 1 for each in self._registered.values()), default=self._position)

    async def follow(self, after: int) -> None:
        """Follow the log for ever. Raises Unavailable."""
        self._position = after
        self._moved.set()
        async with aclosing(self._client.log.follow(self._client.subjects.agents, after=after)) as records:
            async for record in records:
                self._note(record)

    def known_s(self, instance: str) -> float:
        """For how long we have known that it has registered; infinite if it has not."""
        known = self._registered.get(instance)
        return time.monotonic() - known.noted_s if known is not None else math.inf

    async def running(self, instance: str) -> Running:
        """What the process of an instance does, if it has registered, and on this machine."""
        known = self._registered.get(instance)
        if known is None or known.host != socket.gethostname():
            return ""
        return await running(known.pid, since_s=(utc_now() - known.at).total_seconds())

    async def lose(self, instance: str, cause: Loss, evidence: str, held: int) -> None:
        """Say that an instance is lost, unless it has said itself that it ended. Raises Unavailable, TooLarge."""
        known = self._registered.get(instance)
        if known is None:
            return
        lost = AgentLost(known.agent, instance, cause, evidence, held)
        message = envelope(AGENT_LOST, lost, id=uuid4().hex, source=self._client.source, time=utc_now())
        subject = self._client.subjects.agent(known.agent, instance)
        try:
            await self._client.log.append(subject, message, expected=known.position)
        except VersionConflict:
            # What stands there is on its way to us.
            return
        logger.warning("lost", instance=instance, cause=cause, evidence=evidence)
        self._registered.pop(instance, None)

    def _note(self, record: Record) -> None:
        event = event_in(record)
        self._position = record.position
        if isinstance(event, Card):
            card = msgspec.json.encode(without_schemas(event))
            self._registered[event.instance] = _Registered(
                event.agent, record.position, record.stored_at, event.host, event.pid, card, time.monotonic()
            )
        elif event is not None:
            self._registered.pop(event.instance, None)
        self._moved.set()

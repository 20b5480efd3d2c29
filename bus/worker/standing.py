"""How one instance stands with the log: whether operators want it to work, and whether it counts as lost.

Copies of what is stored are heard live, and are only a reason to look: what counts is what the log says then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import structlog

from bus.broker.connection import Message
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, MalformedMessage
from bus.format.envelope import decode, envelope
from bus.format.subjects import live_copy
from bus.log.log import VersionConflict
from bus.registry.arrivals import event_in
from bus.registry.card import AGENT_REGISTERED, AgentLost, Card
from bus.registry.orders import AREA, AgentDrained, Orders, Quarantine, read_order

logger = structlog.get_logger(__name__)

_AGAIN_S = 1.0


class Standing:
    """Of one instance. `quarantine` and `drain` are the orders it is under, as of the last look."""

    def __init__(self, client: Client, card: Card) -> None:
        self._client = client
        self._card = card
        self._orders = Orders()
        self._orders_on = client.subjects.ops(AREA)
        self._own = client.subjects.agent(card.agent, card.instance)
        self._since = 0
        self._hinted = asyncio.Event()
        self.quarantine: Quarantine | None = None
        self.drain: AgentDrained | None = None

    @asynccontextmanager
    async def heeding(self) -> AsyncIterator[None]:
        """Hear what is stored about this instance while the block runs, and look at what was stored before.

        A drain from before is not for this one. Raises Unavailable.
        """
        connection = self._client.connection
        told = [
            connection.subscribe(live_copy(self._orders_on), self._hear_order),
            connection.subscribe(live_copy(self._own), self._hear_loss),
        ]
        forget = connection.on_reconnect(self._hinted.set)
        try:
            await self._read()
            self._since, self.drain = self._orders.position, None
            yield
        finally:
            forget()
            for each in told:
                each.unsubscribe()

    async def mind(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Look whenever there is a reason to, and say when something is otherwise; until cancelled."""
        told = self.quarantine, self.drain
        while True:
            await self._hinted.wait()
            self._hinted.clear()
            try:
                await self._read()
                if (self.quarantine, self.drain) != told:
                    await changed()
                    told = self.quarantine, self.drain
                await self._come_back()
            except BusError as error:
                logger.warning("orders not followed", error=str(error))
                await asyncio.sleep(_AGAIN_S)
                self._hinted.set()

    async def say(self, kind: str, what: object, *, expected: int | None = None) -> None:
        """Store an event of this instance. Raises as `Log.append`."""
        message = envelope(kind, what, id=uuid4().hex, source=self._client.source, time=utc_now())
        await self._client.log.append(self._own, message, expected=expected)

    async def _read(self) -> None:
        async for record in self._client.log.read(self._orders_on, after=self._orders.position):
            try:
                self._orders.note(record.envelope(), record.position)
            except MalformedMessage as error:
                logger.warning("record set aside", position=record.position, error=str(error))
        self.quarantine = self._orders.quarantine_of(self._card)
        self.drain = self._orders.drain_of(self._card, after=self._since)

    async def _come_back(self) -> None:
        """Register again, if somebody has asked this instance in vain, and it lives."""
        newest = await self._client.log.last(self._own)
        if newest is None or not isinstance(event_in(newest), AgentLost):
            return
        logger.warning("was taken for lost")
        try:
            await self.say(AGENT_REGISTERED, self._card, expected=newest.position)
        except VersionConflict:
            self._hinted.set()

    def _hear_order(self, message: Message) -> None:
        try:
            order = read_order(decode(message.data))
        except MalformedMessage:
            # Too large to be whole in a copy, or nonsense: the log says which.
            self._hinted.set()
            return
        if order is not None and order.whom.agent == self._card.agent:
            self._hinted.set()

    def _hear_loss(self, _message: Message) -> None:
        self._hinted.set()

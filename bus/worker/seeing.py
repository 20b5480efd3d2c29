"""Seeing through: a place in a lane is served until its run has ended, attempt after attempt, whoever makes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from bus.broker.pull import Delivery
from bus.client import Client
from bus.errors import BusError, MalformedMessage
from bus.format.envelope import Envelope, decode
from bus.format.payload import is_inline
from bus.guards.circuit import Circuit
from bus.handlers.agent import Capability
from bus.log.log import VersionConflict
from bus.runs.lane import RESUMED
from bus.worker.attempts import Attempts
from bus.worker.room import Room
from bus.worker.turn import Turn

logger = structlog.get_logger(__name__)

_NOT_NOW_S = 1.0
_HAND_ON_S = 0.05


class Seeing:
    """Of one instance. What it does counts by the log alone: two that see the same run through do no harm."""

    def __init__(self, client: Client, attempts: Attempts) -> None:
        self._client = client
        self._attempts = attempts

    async def through(self, capability: Capability, room: Room, delivery: Delivery, circuit: Circuit | None) -> None:
        """Serve one place. The next in its lane is handed out when this one is acknowledged."""
        turn = Turn(self._client, self._attempts, capability, room, circuit)
        try:
            async with self._kept(delivery):
                message = await self._message(delivery)
                if message.type == RESUMED:
                    is_over = await turn.resume(message)
                else:
                    is_over = await turn.place(message, delivery.message.subject)
        except MalformedMessage as error:
            # Anybody could have published it; it is no run's, and stays in the log.
            logger.warning("record set aside", position=delivery.stream_sequence, error=str(error))
            delivery.ack()
        except asyncio.CancelledError:
            delivery.nak(_HAND_ON_S)
            raise
        except VersionConflict:
            # Somebody else was handed it, or still had it.
            delivery.nak(_HAND_ON_S)
        except BusError as error:
            logger.warning("not seen through", position=delivery.stream_sequence, error=str(error))
            delivery.nak(_NOT_NOW_S)
        else:
            if is_over:
                delivery.ack()
            else:
                delivery.nak(_HAND_ON_S)

    async def _message(self, delivery: Delivery) -> Envelope:
        body = delivery.message.data
        # What is large is not in the message, but referred to.
        return decode(body if is_inline(body) else await self._client.log.unpack(body))

    @asynccontextmanager
    async def _kept(self, delivery: Delivery) -> AsyncIterator[None]:
        """The place is ours while the block runs: whoever is silent for a lease loses it."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(self._client.settings.lease_s / 3)
                if self._client.connection.is_connected:
                    delivery.in_progress()

        keeping = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeping.cancel()

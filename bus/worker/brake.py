"""The brake: a capability with `on_dead="pause"` takes nothing after a death, until somebody releases it.

Nothing of it is stored: a death that is newer than the last release is what holds it, whatever became of that work. So
it does not matter who gave it up, and every instance sees the same, also one that starts later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import msgspec
import structlog

from bus.client import Client
from bus.errors import BusError, MalformedMessage
from bus.format.envelope import decode_data
from bus.letters import verdicts
from bus.letters.verdicts import CapabilityReleased
from bus.log.record import Record

logger = structlog.get_logger(__name__)

_AGAIN_S = 1.0
_released = msgspec.json.Decoder(CapabilityReleased)


class Brake:
    """Of one capability. `changed` is told each time whether it is on now."""

    def __init__(self, client: Client, capability: str, changed: Callable[[bool], None]) -> None:
        self._client = client
        self._capability = capability
        self._changed = changed
        self._deaths = client.subjects.dead(capability)
        self._releases = client.subjects.ops("released")
        self._position = 0
        self.is_on = False

    async def look(self) -> None:
        """How it stands at this moment. Raises Unavailable."""
        released = 0
        async for record in self._client.log.read(self._releases):
            self._position = record.position
            if self._is_release(record):
                released = record.position
        newest = await self._client.log.last(self._deaths)
        if newest is not None and newest.position > released:
            self._position = max(self._position, newest.position)
            self.put(on=True)

    async def follow(self) -> None:
        """Heed deaths and releases from then on, until cancelled."""
        while True:
            try:
                records = self._client.log.follow(self._deaths, self._releases, after=self._position)
                async with aclosing(records):
                    async for record in records:
                        self._position = record.position
                        if record.subject == self._deaths:
                            self.put(on=True)
                        elif self._is_release(record):
                            self.put(on=False)
            except BusError as error:
                logger.warning("brake not followed", capability=self._capability, error=str(error))
                await asyncio.sleep(_AGAIN_S)

    def put(self, *, on: bool) -> None:
        if self.is_on == on:
            return
        self.is_on = on
        if on:
            next_step = f"phasebus dead release {self._capability}"
            logger.warning("paused after a death", capability=self._capability, next=next_step)
        else:
            logger.info("released", capability=self._capability)
        self._changed(on)

    def _is_release(self, record: Record) -> bool:
        try:
            message = record.envelope()
            said = decode_data(message, _released, "a release")
        except MalformedMessage as error:
            logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
            return False
        return message.type == verdicts.CAPABILITY_RELEASED and said.capability == self._capability

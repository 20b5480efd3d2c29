"""Seeing through: a place in a lane is served until its run has ended, attempt after attempt, whoever makes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import structlog

from bus.broker.pull import Delivery
from bus.client import Client
from bus.clock import utc_now
from bus.errors import Archived, BusError, MalformedMessage, NotFound
from bus.format.envelope import decode
from bus.guards.circuit import Circuit
from bus.handlers.agent import Capability
from bus.letters.letters import Letters
from bus.letters.wanted import Wanted
from bus.rules.inputs import work
from bus.rules.run import RunState
from bus.runs.lane import PLACED
from bus.runs.task import WORK
from bus.worker.attempts import Attempts
from bus.worker.room import Room

logger = structlog.get_logger(__name__)

_NOT_NOW_S = 1.0
_HAND_ON_S = 0.05
_IN_LINE_S = 0.2
_LOOK_S = 0.1
_LONGEST_LOOK_S = 1.0


class Seeing:
    """Of one instance. What it does counts by the log alone: two that see the same run through do no harm."""

    def __init__(self, client: Client, attempts: Attempts, version: str) -> None:
        self._client = client
        self._attempts = attempts
        self._version = version

    async def through(self, capability: Capability, room: Room, delivery: Delivery, circuit: Circuit | None) -> None:
        """Serve one place. The next in its lane is handed out when this one is acknowledged."""
        try:
            run, causation = _placed(delivery)
        except MalformedMessage as error:
            # Anybody could have published it; it is no run's, and stays in the log.
            logger.warning("record set aside", position=delivery.stream_sequence, error=str(error))
            delivery.ack()
            return
        try:
            async with self._kept(delivery):
                is_over = await self._serve(capability, room, run, causation, circuit)
        except asyncio.CancelledError:
            delivery.nak(_HAND_ON_S)
            raise
        except BusError as error:
            logger.warning("not seen through", run=run, error=str(error))
            delivery.nak(_NOT_NOW_S)
            return
        if is_over:
            delivery.ack()
        else:
            delivery.nak(_HAND_ON_S)

    async def _serve(
        self, capability: Capability, room: Room, run: str, causation: str, circuit: Circuit | None
    ) -> bool:
        """Whether it is over; if not, somebody else is to go on."""
        pause_s = _LOOK_S
        while True:
            try:
                state = await self._client.runs.load(run)
            except (Archived, NotFound):
                return True
            if not state.is_open and not await self._is_parked(capability, state):
                return True
            if self._attempts.draining:
                return False
            if _is_due(state) and not self._is_ours(capability, state):
                # The place stays here, so the order does, and the work goes to those whom a route gives it to.
                self._client.ledger.dispatch(state, [(WORK, None)], in_line=True)
            elif _is_due(state):
                # Others may have a hand free.
                if not await room.enter(_IN_LINE_S, handed=False):
                    return False
                try:
                    await self._attempts.take(capability, work(state, WORK, None), causation, circuit)
                finally:
                    room.leave()
                pause_s = _LOOK_S
                state = await self._client.runs.load(run)
                if not state.is_open:
                    continue
            # Its time has not come, somebody else has it, or it waits to be redriven.
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_LOOK_S) if not state.is_open else _LOOK_S

    def _is_ours(self, capability: Capability, state: RunState) -> bool:
        """Whether work may be done here: no route has given it to other versions."""
        item = state.phases[WORK].item(None)
        arm = item.arm if item is not None else None
        return arm is None or self._client.signposts.arms(capability.name, self._version) == arm.versions

    async def _is_parked(self, capability: Capability, state: RunState) -> bool:
        """Whether work that was given up holds what stands behind it, until somebody redrives or discards it."""
        if capability.on_dead != "park" or state.status != "failed":
            return False
        wanted = Wanted(capability=capability.name, run=state.run, status=("open",))
        async with aclosing(Letters(self._client.log, self._client.runs).all(wanted, after=state.origin)) as letters:
            async for letter in letters:
                logger.debug("parked", run=state.run, letter=letter.number)
                return True
        return False

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


def _placed(delivery: Delivery) -> tuple[str, str]:
    """The run that stands there, and the id of its beginning. Raises MalformedMessage."""
    placed = decode(delivery.message.data)
    if placed.type != PLACED or placed.runid is None:
        raise MalformedMessage(f"{placed.type!r} is not a place in a lane")
    return placed.runid, placed.causationid or placed.id


def _is_due(state: RunState) -> bool:
    """Whether its attempt can be taken by who has its place."""
    item = state.phases[WORK].item(None)
    return (
        state.is_in_line
        and state.paused_at is None
        and item is not None
        and item.status == "ready"
        and (item.ready_at is None or item.ready_at <= utc_now())
    )

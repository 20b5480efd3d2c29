"""A desk: one capability of one instance. While it is open it takes as much work as there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import structlog

from bus.broker.connection import Message, Subscription
from bus.broker.pull import Delivery
from bus.client import Client
from bus.format.subjects import is_special
from bus.guards.circuit import Circuit
from bus.handlers.agent import Capability
from bus.log.layout import cache_config
from bus.log.streams import ensure_stream
from bus.registry.presence import Load
from bus.worker.arms import FORGOTTEN_S, Arms
from bus.worker.brake import Brake
from bus.worker.lanes import Lanes
from bus.worker.queues import Queues
from bus.worker.room import Room

logger = structlog.get_logger(__name__)

# So long does pulled work wait for room here before somebody else may have it.
_IN_LINE_S = 0.2


class Serving(Protocol):
    """What is done with work; neither raises."""

    async def pulled(self, capability: Capability, delivery: Delivery, circuit: Circuit | None) -> None:
        """Work from the stream."""

    async def lined(self, capability: Capability, room: Room, delivery: Delivery, circuit: Circuit | None) -> None:
        """A place in a lane."""

    async def handed(self, capability: Capability, room: Room, message: Message, circuit: Circuit | None) -> None:
        """Work that somebody who waits for it hands over directly."""


class Desk:
    """Opened and closed as its instance is quarantined, released and drained; what was begun goes on regardless.

    Everything runs in `tasks`.
    """

    def __init__(
        self, client: Client, capability: Capability, instance: str, serving: Serving, tasks: asyncio.TaskGroup
    ) -> None:
        self._client = client
        self._capability = capability
        self._serving = serving
        self._tasks = tasks
        self._circuit = client.breaker(capability.name, capability.breaker) if capability.breaker is not None else None
        pauses = capability.on_dead == "pause"
        self.brake = Brake(client, capability.name, lambda _on: self._place()) if pauses else None
        inactive_s = FORGOTTEN_S if is_special(capability.name) else None
        self._queues = Queues(
            client, capability.name, self._take, lambda: self._room.free, self._fill, tasks, inactive_s
        )
        self._arms = Arms(client, self._take, lambda: self._room.free, self._fill, self._hear, tasks)
        self._room = Room(
            capability.concurrency,
            lambda _free: self._fill(),
            lambda level: self._queues.has_before(level) or self._arms.has_before(level),
        )
        self._lanes = Lanes(client, capability, instance, self._line) if capability.ordered else None
        self._listening: Subscription | None = None
        self._rank: int | None = 0
        self._braking: asyncio.Task[None] | None = None
        self._resting: asyncio.Task[None] | None = None
        self._pulling: set[asyncio.Task[None]] = set()
        self.serving: set[asyncio.Task[None]] = set()

    @property
    def load(self) -> Load:
        return Load(len(self.serving), self._capability.concurrency)

    async def open(self) -> None:
        """Take work from now on. Raises Unavailable, Misconfigured."""
        if self._queues.is_open:
            return
        client = self._client
        if self._capability.cache is not None:
            await ensure_stream(
                client.connection,
                cache_config(client.subjects, client.settings.replicas),
                client.settings.request_timeout_s,
            )
        if self._circuit is not None:
            await self._circuit.known()
        if self.brake is not None and self._braking is None:
            # Before anything is asked for: there may have been a death.
            await self.brake.look()
            self._braking = self._tasks.create_task(self.brake.follow())
        await self._queues.open()
        if self._lanes is not None:
            for task in await self._lanes.open(self._tasks):
                self._pulling.add(task)
                task.add_done_callback(self._pulling.discard)
        self._place()
        self._fill()
        self._listen()

    async def follow(self, needs: set[str]) -> None:
        """Take what routes give to versions of this kind: work for these capabilities. Raises as `open`."""
        if self._queues.is_open and needs != self._arms.needs:
            await self._arms.follow(needs)
            self._place()
            self._fill()
            self._listen_to_arms()

    def rank(self, rank: int | None) -> None:
        """Come after instances with a lower number, 0 to 9; None: take nothing until there is one again."""
        if rank != self._rank:
            self._rank = rank
            self._place()
            self._listen()

    def close(self) -> None:
        """Take nothing more."""
        self._queues.close()
        if self._lanes is not None:
            self._lanes.close()
        self._arms.close()
        self._listen()

    def cancel(self) -> None:
        """End what is left: pulling, and what was begun, which is handed back."""
        self.close()
        self._arms.cancel()
        self._queues.cancel()
        others = [task for task in (self._braking, self._resting) if task is not None]
        for task in (*self._pulling, *others, *self.serving):
            task.cancel()

    def _place(self) -> None:
        """Stand where work is given out, or aside."""
        is_held = self._rank is None or (self.brake is not None and self.brake.is_on)
        self._queues.place(self._rank or 0, held=is_held)
        self._arms.place(self._rank or 0, held=is_held)
        if self._lanes is not None:
            self._lanes.place(self._rank or 0, held=is_held)

    def _listen(self) -> None:
        """Be handed work directly: at the first place to ask, or at the one for when nobody is there."""
        if self._listening is not None:
            self._listening.unsubscribe()
            self._listening = None
        self._listen_to_arms()
        if self._is_listening:
            subject = self._client.subjects.hand(self._capability.name, spare=(self._rank or 0) > 0)
            self._listening = self._client.connection.subscribe(subject, self._hear, queue="instances")

    def _listen_to_arms(self) -> None:
        self._arms.listen(spare=(self._rank or 0) > 0 if self._is_listening else None)

    @property
    def _is_listening(self) -> bool:
        # What may be cached is looked up, and that is for work in the log.
        return self._queues.is_open and self._rank is not None and self._capability.cache is None

    def _take(self, delivery: Delivery, *, waits: bool) -> bool:
        if self._room.enter_now():
            self._begin(self._pulled(delivery))
            return True
        if waits:
            self._begin(self._in_line(delivery))
        return waits

    def _line(self, delivery: Delivery) -> None:
        self._begin(self._lined(delivery))

    async def _lined(self, delivery: Delivery) -> None:
        try:
            await self._serving.lined(self._capability, self._room, delivery, self._circuit)
        finally:
            self._fill()

    def _hear(self, message: Message) -> None:
        if not self._room.free:
            self._queues.glance()
        self._begin(self._serving.handed(self._capability, self._room, message, self._circuit))

    def _begin(self, serving: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(serving)
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def _in_line(self, delivery: Delivery) -> None:
        # What was asked for can still come when something else was handed over meanwhile: then it waits a moment.
        if not await self._room.enter(_IN_LINE_S, handed=False):
            delivery.nak(_IN_LINE_S)
            return
        await self._pulled(delivery)

    async def _pulled(self, delivery: Delivery) -> None:
        try:
            await self._serving.pulled(self._capability, delivery, self._circuit)
        finally:
            self._room.leave()

    def _fill(self) -> None:
        """Ask for as much as there is room for; for nothing while it would not be let through."""
        if self._circuit is None or self._circuit.state.status == "closed":
            self._ask()
        elif self._queues.is_open and self._resting is None:
            self._resting = self._tasks.create_task(self._rest(self._circuit))

    def _ask(self) -> None:
        self._queues.fill()
        self._arms.fill()
        if self._lanes is not None and self._room.free:
            self._lanes.grant()

    async def _rest(self, circuit: Circuit) -> None:
        await circuit.until_admitting()
        self._resting = None
        self._ask()

"""A desk: one capability of one instance. While it is open it takes as much work as there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from bus.agent import Capability
from bus.brake import Brake
from bus.circuit import Circuit
from bus.client import Client
from bus.presence import Load
from bus.pull import Delivery, Intake
from bus.streams import ensure_consumer, set_up_cache, set_up_work

logger = structlog.get_logger(__name__)

# What came too late is handed on, when the server has heard that no more is wanted here.
_HAND_ON_S = 0.02


class Desk:
    """Opened and closed as its instance is quarantined, released and drained; what was begun goes on regardless.

    `serve` is what happens to a delivery; it must not raise. Everything runs in `tasks`.
    """

    def __init__(
        self,
        client: Client,
        capability: Capability,
        serve: Callable[[Capability, Delivery, Circuit | None], Coroutine[Any, Any, None]],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._client = client
        self._capability = capability
        self._serve = serve
        self._tasks = tasks
        self._circuit = client.breaker(capability.name, capability.breaker) if capability.breaker is not None else None
        self.brake = Brake(client, capability.name, self._hold) if capability.on_dead == "pause" else None
        self._braking: asyncio.Task[None] | None = None
        self._intake: Intake | None = None
        self._resting: set[asyncio.Task[None]] = set()
        self._pulling: set[asyncio.Task[None]] = set()
        self.serving: set[asyncio.Task[None]] = set()

    @property
    def load(self) -> Load:
        return Load(len(self.serving), self._capability.concurrency)

    async def open(self) -> None:
        """Take work from now on. Raises Unavailable, Misconfigured."""
        if self._intake is not None:
            return
        client = self._client
        if self._capability.cache is not None:
            await set_up_cache(client.connection, client.subjects, client.settings)
        if self._circuit is not None:
            await self._circuit.known()
        if self.brake is not None and self._braking is None:
            # Before anything is asked for: there may have been a death.
            await self.brake.look()
            self._braking = self._tasks.create_task(self.brake.follow())
        consumer = await self._ensure()
        intake = Intake(
            client.connection,
            client.subjects.work_stream,
            consumer,
            deliver=lambda delivery: self._take(intake, delivery),
            missing=self._restore,
        )
        self._intake = intake
        self._hold(self.brake is not None and self.brake.is_on)
        self._grant(intake, self._capability.concurrency - len(self.serving))
        task = self._tasks.create_task(intake.run())
        self._pulling.add(task)
        task.add_done_callback(self._pulling.discard)

    def close(self) -> None:
        """Take nothing more."""
        if self._intake is not None:
            self._intake.stop()
            self._intake = None

    def cancel(self) -> None:
        """End what is left: pulling, and what was begun, which is handed back."""
        self.close()
        braking = [self._braking] if self._braking is not None else []
        for task in (*self._pulling, *self._resting, *braking, *self.serving):
            task.cancel()

    def _hold(self, held: bool) -> None:
        if self._intake is not None:
            self._intake.hold(held)

    def _take(self, intake: Intake, delivery: Delivery) -> None:
        if self._intake is not intake:
            delivery.nak(_HAND_ON_S)
            return
        task = self._tasks.create_task(self._serve(self._capability, delivery, self._circuit))
        self.serving.add(task)
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self.serving.discard(task)
        if self._intake is not None:
            self._grant(self._intake, 1)

    def _grant(self, intake: Intake, count: int) -> None:
        if self._circuit is None or self._circuit.state.status == "closed":
            intake.grant(count)
            return
        resting = self._tasks.create_task(self._rest(self._circuit, intake, count))
        self._resting.add(resting)
        resting.add_done_callback(self._resting.discard)

    async def _rest(self, circuit: Circuit, intake: Intake, count: int) -> None:
        """Ask for no work while it would not be let through."""
        await circuit.until_admitting()
        if self._intake is intake:
            intake.grant(count)

    async def _ensure(self) -> str:
        client = self._client
        return await ensure_consumer(client.connection, client.subjects, self._capability.name, client.settings)

    async def _restore(self) -> None:
        client = self._client
        await set_up_work(client.connection, client.subjects, client.settings)
        await self._ensure()

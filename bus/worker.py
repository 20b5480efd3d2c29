"""A worker: one live instance of an agent. It registers, says that it lives, pulls work, and drains before it ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from bus.agent import Agent, Capability
from bus.attempts import Attempts
from bus.client import Client
from bus.connecting import connect
from bus.connection import Message
from bus.connection import Subscription as Interest
from bus.context import Context
from bus.envelope import envelope
from bus.errors import BusError
from bus.halts import read_halt
from bus.ledger import utc_now
from bus.presence import Beat, announce
from bus.problem import Problem
from bus.pull import Delivery, Intake
from bus.reception import Reception
from bus.room import Room
from bus.signals import until_signalled
from bus.streams import ensure_consumer, set_up_work
from bus.subscriptions import Subscription

if TYPE_CHECKING:
    from bus.cells import Cells

logger = structlog.get_logger(__name__)

AGENT_REGISTERED = "agent.registered.v1"
AGENT_DEREGISTERED = "agent.deregistered.v1"
# So long does pulled work wait for room here before somebody else may have it.
_IN_LINE_S = 0.2


class Worker:
    """One live instance of an agent. `instance` is unique; the connection carries it in its name."""

    def __init__(self, client: Client, agent: Agent, instance: str) -> None:
        self._client = client
        self._agent = agent
        self._cells: Cells | None = None
        self._attempts = Attempts(client, agent, instance, self._apart)
        self._reception = Reception(client, agent, instance, self._attempts, self._apart)
        self._intakes: list[Intake] = []
        self._listening: list[Interest] = []
        self._serving: set[asyncio.Task[None]] = set()
        self.instance = instance
        self.ready = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then finish what was begun within the settings' grace, or hand it back.

        Raises SettingsError if a handler can't run in a process of its own.
        """
        if all(each.isolation is None for each in self._agent.capabilities.values()):
            await self._serve_until(stop)
            return
        from bus.cells import Cells  # noqa: PLC0415 - most agents have no use for it

        self._cells = Cells(self._agent)
        await self._cells.open()
        try:
            await self._serve_until(stop)
        finally:
            self._cells.close()

    async def _apart(self, capability: Capability, value: object, context: Context) -> bytes | Problem:
        assert self._cells is not None, "an agent with isolated handlers opens their cells"
        return await self._cells.answer(capability, value, context)

    async def _serve_until(self, stop: asyncio.Event) -> None:
        client, settings = self._client, self._client.settings
        await self._register(AGENT_REGISTERED)
        logger.info("serving", instance=self.instance, capabilities=list(self._agent.capabilities))
        async with asyncio.TaskGroup() as tasks, self._heeding(tasks):
            for each in self._agent.capabilities.values():
                self._intakes.append(await self._intake(each, tasks))
            for subscribed in self._agent.subscriptions:
                subscription = Subscription(client, self._agent, subscribed, self._attempts)
                self._intakes.append(await subscription.intake(tasks))
            presence = tasks.create_task(
                announce(client.connection, client.subjects, self._beat, settings.beat_s, self.ready)
            )
            pulling = [tasks.create_task(intake.run()) for intake in self._intakes]
            await stop.wait()
            self._attempts.draining = True
            for interest in self._listening:
                interest.unsubscribe()
            for intake in self._intakes:
                intake.stop()
            logger.info("draining", held=len(self._serving))
            if self._serving:
                await asyncio.wait(self._serving, timeout=settings.grace_s)
            for task in (*pulling, *self._serving):
                task.cancel()
            if self._serving:
                await asyncio.wait(self._serving, timeout=settings.request_timeout_s)
            presence.cancel()
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                await self._register(AGENT_DEREGISTERED)
        except (BusError, TimeoutError) as error:
            logger.warning("not deregistered", error=str(error))

    @asynccontextmanager
    async def _heeding(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Hear what is no longer ours, as long as anything may be."""

        heeding: set[asyncio.Task[None]] = set()

        def hear(message: Message) -> None:
            halt = read_halt(message.data)
            if halt is not None:
                task = tasks.create_task(self._attempts.heed(halt))
                heeding.add(task)
                task.add_done_callback(heeding.discard)

        told = self._client.connection.subscribe(self._client.subjects.halt(self.instance), hear)
        try:
            yield
        finally:
            told.unsubscribe()
            for task in heeding:
                task.cancel()

    async def _intake(self, capability: Capability, tasks: asyncio.TaskGroup) -> Intake:
        client = self._client

        async def restore() -> None:
            await set_up_work(client.connection, client.subjects, client.settings)
            await ensure_consumer(client.connection, client.subjects, capability.name, client.settings)

        def spawn(serving: Coroutine[Any, Any, None]) -> None:
            task = tasks.create_task(serving)
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

        def deliver(delivery: Delivery) -> None:
            spawn(self._serve(capability, room, delivery))

        def hear(message: Message) -> None:
            spawn(self._receive(capability, room, message))

        consumer = await ensure_consumer(client.connection, client.subjects, capability.name, client.settings)
        stream = client.subjects.work_stream
        intake = Intake(client.connection, stream, consumer, deliver=deliver, missing=restore)
        # What was asked for can still come when something else was handed over meanwhile: then it waits a moment.
        room = Room(capability.concurrency, lambda free: intake.grant(max(free - intake.credit, 0)))
        intake.grant(capability.concurrency)
        subject = client.subjects.hand(capability.name)
        self._listening.append(client.connection.subscribe(subject, hear, queue="instances"))
        return intake

    async def _serve(self, capability: Capability, room: Room, delivery: Delivery) -> None:
        try:
            if not await room.enter(_IN_LINE_S, handed=False):
                delivery.nak(_IN_LINE_S)
                return
            try:
                await self._attempts.serve(capability, delivery)
            finally:
                room.leave()
        except Exception:
            # One delivery that meets a bug of ours must not end the others; the supervisor sees to its attempt.
            logger.exception("bug", subject=delivery.message.subject)

    async def _receive(self, capability: Capability, room: Room, message: Message) -> None:
        try:
            await self._reception.serve(capability, room, message)
        except Exception:
            # Whoever asked gets no answer, and stores the work himself.
            logger.exception("bug", subject=message.subject)

    async def _register(self, kind: str) -> None:
        client = self._client
        message = envelope(kind, self._beat(0.0), id=uuid4().hex, source=client.source, time=utc_now())
        await client.log.append(client.subjects.agent(self._agent.name, self.instance), message)

    def _beat(self, lag_s: float) -> Beat:
        return Beat(
            agent=self._agent.name,
            version=self._agent.version,
            instance=self.instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            capabilities={name: each.concurrency for name, each in self._agent.capabilities.items()},
            held=self._attempts.held,
            lag_s=round(lag_s, 3),
        )


def new_instance(agent: str) -> str:
    """A name for a new instance of an agent."""
    return f"{agent[:50]}-{uuid4().hex[:8]}"


@asynccontextmanager
async def serving(client: Client, *agents: Agent) -> AsyncIterator[None]:
    """Serve agents in this process, over this client's connection, while the block runs: for tests and scripts."""
    stop = asyncio.Event()
    workers = [Worker(client, agent, new_instance(agent.name)) for agent in agents]
    running = [asyncio.create_task(worker.run(stop)) for worker in workers]
    try:
        for worker, task in zip(workers, running, strict=True):
            ready = asyncio.create_task(worker.ready.wait())
            await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if task.done():
                await task  # it says why it does not serve
        yield
    finally:
        stop.set()
        await asyncio.gather(*running)


async def serve(agent: Agent, stop: asyncio.Event, **settings: Any) -> None:
    """Connect and serve `agent` until `stop` is set. `settings` as for `connect`; a bus has to be there."""
    instance = new_instance(agent.name)
    async with connect(name=f"agent/{agent.name}/{instance}", alone=False, **settings) as client:
        await Worker(client, agent, instance).run(stop)


def run_agent(agent: Agent) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once. Without a bus, the process ends."""
    try:
        asyncio.run(until_signalled(lambda stop: serve(agent, stop)))
    except BusError as error:
        raise SystemExit(f"error: {error}") from error

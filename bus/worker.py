"""A worker: one process (or part of one) that serves an agent's capabilities.

Work is a hint, the log is the truth: who takes work first appends `phase.started` for exactly that attempt, and a
result counts by an append that names it. The message is acknowledged in between, when the log has it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from bus import dead
from bus.agent import Agent, Capability
from bus.client import Client, connect
from bus.commands import Complete, Fail, Progress, Take
from bus.context import Context
from bus.envelope import decode, decode_data, envelope
from bus.errors import BusError, MalformedMessage, Refused, TooLarge, Unavailable
from bus.events import PhaseStarted, ResultRefused
from bus.handling import perform
from bus.inputs import Order
from bus.presence import Beat, Held, announce
from bus.problem import Problem
from bus.pull import Delivery, Intake
from bus.runs import utc_now
from bus.signals import until_signalled
from bus.streams import ensure_consumer, set_up_work

logger = structlog.get_logger(__name__)

AGENT_REGISTERED = "agent.registered.v1"
AGENT_DEREGISTERED = "agent.deregistered.v1"
_PROGRESS_EVERY_S = 0.5
_NOT_NOW_S = 1.0
_order = msgspec.json.Decoder(Order)


class Worker:
    """One live instance of an agent. `instance` is unique; the connection carries it as its name."""

    def __init__(self, client: Client, agent: Agent, instance: str) -> None:
        self._client = client
        self._agent = agent
        self.instance = instance
        self._held: dict[asyncio.Task[None], Held] = {}
        self._intakes: list[Intake] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then finish what was begun within the settings' grace, or hand it back."""
        await self._register(AGENT_REGISTERED)
        async with asyncio.TaskGroup() as tasks:
            settings = self._client.settings
            presence = tasks.create_task(
                announce(self._client.connection, self._client.subjects, self._beat, settings.beat_s)
            )
            pulling = [tasks.create_task(self._pull(name, tasks)) for name in self._agent.capabilities]
            await stop.wait()
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
        await self._register(AGENT_DEREGISTERED)

    async def _pull(self, name: str, tasks: asyncio.TaskGroup) -> None:
        capability = self._agent.capabilities[name]
        client = self._client

        async def restore() -> None:
            await set_up_work(client.connection, client.subjects, client.settings)
            await ensure_consumer(client.connection, client.subjects, name, client.settings)

        def deliver(delivery: Delivery) -> None:
            task = tasks.create_task(self._serve(capability, delivery))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
            task.add_done_callback(lambda _: intake.grant(1))

        consumer = await ensure_consumer(client.connection, client.subjects, name, client.settings)
        intake = Intake(
            client.connection,
            stream=client.subjects.work_stream,
            consumer=consumer,
            deliver=deliver,
            missing=restore,
        )
        self._intakes.append(intake)
        intake.grant(capability.concurrency)
        await intake.run()

    async def _serve(self, capability: Capability, delivery: Delivery) -> None:
        """One delivery, from the message to its result in the log. Never raises: what goes wrong is recorded."""
        try:
            message = decode(delivery.message.data)
            order = decode_data(message, _order, "an order for work")
        except MalformedMessage as error:
            await self._bury(capability, delivery, str(error))
            return
        with structlog.contextvars.bound_contextvars(
            run=order.run,
            phase=order.phase if order.item is None else f"{order.phase}:{order.item}",
            attempt=order.attempt,
            agent=self._agent.name,
            instance=self.instance,
            correlation=order.correlation,
            causation=message.id,
        ):
            try:
                started = await self._take(capability, order, message.id)
            except Refused as refused:
                logger.debug("stale work", reason=refused.reason)
                delivery.ack()
                return
            except BusError as error:
                logger.warning("not taken", error=str(error))
                delivery.nak(_NOT_NOW_S)
                return
            delivery.ack()
            await self._attempt(capability, order, started, message.id)

    async def _take(self, capability: Capability, order: Order, causation: str) -> PhaseStarted:
        command = Take(order.phase, order.item, order.attempt, self._agent.name, self.instance, capability.timeout_s)
        decided = await self._client.runs.submit(order.run, command, causation=causation)
        started = decided.events[0]
        assert isinstance(started, PhaseStarted), "a take is answered by a start"
        return started

    async def _attempt(self, capability: Capability, order: Order, started: PhaseStarted, causation: str) -> None:
        task = asyncio.current_task()
        assert task is not None, "handlers run in tasks"
        self._held[task] = Held(order.run, order.phase, order.item, order.attempt)
        context = Context(
            run=order.run,
            plan=order.plan,
            phase=order.phase,
            item=order.item,
            attempt=order.attempt,
            agent=self._agent.name,
            instance=self.instance,
            correlation=order.correlation,
            deadline_at=started.deadline_at,
            report=_Progress(self._client, order, self.instance).report,
        )
        began = time.monotonic()
        timeout_s = (started.deadline_at - utc_now()).total_seconds()
        logger.info("started", capability=capability.name)
        try:
            result = await perform(capability, order.input, context, timeout_s=max(timeout_s, 0.0))
            await self._conclude(order, result, causation)
            duration_ms = round((time.monotonic() - began) * 1000, 1)
            if isinstance(result, Problem):
                logger.warning("failed", problem=result.code, error=str(result), duration_ms=duration_ms)
            else:
                logger.info("completed", duration_ms=duration_ms)
        except asyncio.CancelledError:
            problem = Problem("handed_back", f"{self.instance} was stopped", "transient")
            await self._conclude(order, problem, causation)
            raise
        finally:
            del self._held[task]

    async def _conclude(self, order: Order, result: bytes | Problem, causation: str) -> None:
        """Put the result into the log. If that can't be done in time, the supervisor finds the attempt forgotten."""
        where = (order.phase, order.item, order.attempt, self.instance)
        if isinstance(result, Problem):
            cause = result.code if result.code in ("timed_out", "handed_back") else "error"
            command: Complete | Fail = Fail(*where, result, cause)
        else:
            command = Complete(*where, msgspec.Raw(result))
        try:
            decided = await self._client.runs.submit(order.run, command, causation=causation)
        except TooLarge as error:
            await self._conclude(
                order, Problem("bad_output", "the result is too large", "permanent", str(error)), causation
            )
        except (Refused, Unavailable) as error:
            logger.warning("result not stored", error=str(error))
        else:
            for event in decided.events:
                if isinstance(event, ResultRefused):
                    logger.warning("result refused", reason=event.reason)

    async def _bury(self, capability: Capability, delivery: Delivery, reason: str) -> None:
        client = self._client
        letter = dead.Unreadable(
            capability.name, delivery.message.subject, delivery.message.data, reason, self.instance
        )
        record = envelope(dead.UNREADABLE, letter, id=uuid4().hex, source=client.source, time=utc_now())
        try:
            await client.log.append(client.subjects.dead(capability.name), record)
        except BusError as error:
            logger.warning("dead letter not stored", error=str(error))
            delivery.nak(_NOT_NOW_S)
            return
        logger.warning("unreadable work", reason=reason)
        # Only now: what is acknowledged is gone from the work queue.
        delivery.ack()

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
            held=list(self._held.values()),
            lag_s=round(lag_s, 3),
        )


class _Progress:
    """Stores what a handler says of its progress: the newest, and no more often than twice a second."""

    def __init__(self, client: Client, order: Order, instance: str) -> None:
        self._client = client
        self._order = order
        self._instance = instance
        self._next = 0.0

    async def report(self, fraction: float, note: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PROGRESS_EVERY_S
        order = self._order
        command = Progress(order.phase, order.item, order.attempt, self._instance, fraction, note)
        try:
            await self._client.runs.submit(order.run, command)
        except BusError as error:
            logger.debug("progress not stored", error=str(error))


def new_instance(agent: str) -> str:
    """A name for a new instance of an agent."""
    return f"{agent[:50]}-{uuid4().hex[:8]}"


async def serve(agent: Agent, stop: asyncio.Event, **settings: Any) -> None:
    """Connect and serve `agent` until `stop` is set. `settings` as for `connect`."""
    instance = new_instance(agent.name)
    async with connect(name=f"agent/{agent.name}/{instance}", **settings) as client:
        await Worker(client, agent, instance).run(stop)


def run_agent(agent: Agent) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once."""
    asyncio.run(until_signalled(lambda stop: serve(agent, stop)))

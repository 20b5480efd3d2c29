"""A worker: one live instance of an agent. It warms up, registers, says that it lives, takes work, and drains."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from bus.broker.connection import Message
from bus.broker.pull import Delivery
from bus.client import Client
from bus.connecting import connect
from bus.errors import BusError
from bus.guards.circuit import Circuit
from bus.handlers.agent import Agent, Capability, special
from bus.handlers.context import Context
from bus.handlers.lifespan import Life
from bus.problem import Problem
from bus.registry.card import AGENT_DEREGISTERED, AGENT_REGISTERED, AgentDeregistered
from bus.registry.health import Health, Vitals, examined
from bus.registry.presence import Beat, Presence
from bus.registry.service import Service
from bus.runs.halts import read_halt
from bus.signals import run_until_signalled
from bus.worker.attempts import Attempts
from bus.worker.desk import Desk
from bus.worker.introduction import card
from bus.worker.reception import Reception
from bus.worker.room import Room
from bus.worker.seeing import Seeing
from bus.worker.standing import Standing
from bus.worker.subscriptions import Subscription

if TYPE_CHECKING:
    from bus.handlers.cells import Cells

logger = structlog.get_logger(__name__)

_LOOK_S = 0.25
_AGAIN_S = 1.0
_GARBAGE_AFTER = 10_000
_STATM = Path("/proc/self/statm")


class Worker:
    """One live instance of an agent. `instance` is unique; the connection carries it in its name.

    `ready` is set when it is warm, registered, and takes work unless it is in quarantine.
    """

    def __init__(self, client: Client, agent: Agent, instance: str) -> None:
        self._client = client
        self._agent = agent
        self._cells: Cells | None = None
        self._life = Life(agent.name, agent.life)
        self._attempts = Attempts(client, agent, instance, self._apart)
        self._reception = Reception(client, agent, instance, self._attempts, self._apart)
        self._seeing = Seeing(client, self._attempts, agent.version)
        self._subscriptions: list[Subscription] = []
        self._card = card(agent, instance, socket.gethostname(), os.getpid())
        self._standing = Standing(client, self._card)
        self._presence = Presence(client.connection, client.subjects, self._card, self._beat, client.settings.beat_s)
        self._attempts.took = self._presence.took
        self._desks: dict[str, Desk] = {}
        self._draining = asyncio.Event()
        self._settling = asyncio.Lock()
        self._health = Health()
        self._reason = ""
        self.instance = instance
        self.ready = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or an operator drains it; then finish what was begun within the settings' grace,
        or hand it back.

        Raises WarmUpFailed; SettingsError if a handler can't run in a process of its own.
        """
        if not await self._life.begin(stop):
            return
        self._attempts.state = self._life.state
        try:
            async with AsyncExitStack() as stack:
                if any(each.isolation is not None for each in self._agent.capabilities.values()):
                    from bus.handlers.cells import Cells  # noqa: PLC0415 - most agents have no use for it

                    self._cells = Cells(self._agent)
                    await self._cells.open()
                    stack.callback(self._cells.close)
                await self._serve_until(stop)
        except ExceptionGroup as group:
            raise _only_error(group) from group
        finally:
            await self._life.end()

    async def _apart(self, capability: Capability, value: object, context: Context) -> bytes | Problem:
        assert self._cells is not None, "an agent with isolated handlers opens their cells"
        return await self._cells.answer(capability, value, context)

    async def _serve_until(self, stop: asyncio.Event) -> None:
        client = self._client
        service = Service(client.connection, client.subjects, self._card, self._attempts.tallies)
        async with (
            asyncio.TaskGroup() as tasks,
            self._heeding(tasks),
            self._standing.heeding(),
            self._presence.answering(),
            service.answering(),
        ):
            taken = list(self._agent.capabilities.values())
            for offered in self._agent.capabilities.values():
                for each in special(offered, self._agent.version, self.instance):
                    self._attempts.tallies[each.name] = self._attempts.tallies[offered.name]
                    taken.append(each)
            for each in taken:
                desk = self._desks[each.name] = Desk(client, each, self.instance, self, tasks)
                if desk.brake is not None:
                    self._attempts.brakes[each.name] = desk.brake
            self._subscriptions += [
                Subscription(client, self._agent, each, self._attempts, tasks) for each in self._agent.subscriptions
            ]
            # Registered before anything is taken: who holds work is known.
            await self._standing.say(AGENT_REGISTERED, self._card)
            await self._settle()
            self._presence.appear()
            logger.info("serving", instance=self.instance, capabilities=list(self._agent.capabilities))
            background = [
                tasks.create_task(self._presence.beating()),
                tasks.create_task(self._standing.mind(self._settle)),
                tasks.create_task(self._mind_routes()),
                tasks.create_task(self._heed(stop)),
                tasks.create_task(self._mind_health()),
            ]
            self.ready.set()
            await self._draining.wait()
            handed_back = await self._drain()
            try:
                async with asyncio.timeout(client.settings.request_timeout_s):
                    end = AgentDeregistered(self._agent.name, self.instance, self._reason, handed_back)
                    await self._standing.say(AGENT_DEREGISTERED, end)
            except (BusError, TimeoutError) as error:
                # Whoever leads sees that nobody answers here any more, and says so.
                logger.warning("not deregistered", error=str(error))
            for task in background:
                task.cancel()

    async def _heed(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._leave("the process was told to stop")

    @property
    def _takers(self) -> Sequence[Desk | Subscription]:
        return [*self._desks.values(), *self._subscriptions]

    def _leave(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._draining.set()

    async def _settle(self) -> None:
        """Do what the orders of operators say."""
        drain, quarantine = self._standing.drain, self._standing.quarantine
        if drain is not None:
            self._leave(f"drained by {drain.by}" + (f": {drain.reason}" if drain.reason else ""))
        async with self._settling:
            is_serving = quarantine is None and not self._draining.is_set()
            self._attempts.draining = not is_serving
            # Who is told that work is taken here can hand it over at once.
            if not is_serving:
                self._presence.offer(False)
            self._place()
            for each in self._takers:
                if is_serving:
                    await each.open()
                else:
                    each.close()
            if is_serving:
                self._presence.offer(True, await self._follow_routes())
        if quarantine is not None:
            logger.warning("in quarantine", by=quarantine.by, reason=quarantine.reason)
        self._presence.say()

    async def _follow_routes(self) -> list[str]:
        """Take what routes give to versions of this kind; returns the capabilities that such work is for."""
        signposts = self._client.signposts
        await signposts.known()
        needs = signposts.needs(self._agent.capabilities, self._agent.version)
        for name in self._agent.capabilities:
            await self._desks[name].follow({needs[name]} if name in needs else set())
        return list(needs.values())

    async def _mind_routes(self) -> None:
        """Settle again whenever routes have changed; until cancelled."""
        while True:
            change = self._client.signposts.change()
            try:
                await self._settle()
            except BusError as error:
                logger.warning("routes not followed", error=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            await change.wait()

    async def _mind_health(self) -> None:
        """Take as much as is good for it."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            # A capability's own breaker lets nothing in by itself.
            broken = [each for each in self._client.guards.open if each not in self._desks]
            limit_mb = self._client.settings.memory_limit_mb
            before = self._health.level
            self._health = examined(self._health, Vitals(loop.time() - due, _memory_mb(), limit_mb, broken))
            if self._health.level != before:
                logger.warning("health", level=self._health.level, before=before, why=self._health.why)
                self._place()
                self._presence.say()

    def _place(self) -> None:
        for desk in self._desks.values():
            desk.rank(self._health.rank(standby=self._agent.standby))

    async def _drain(self) -> int:
        """Take nothing more; finish what was begun, or hand it back. How many attempts were handed back."""
        settings = self._client.settings
        await self._settle()
        serving = {task for desk in self._desks.values() for task in desk.serving}
        logger.info("draining", reason=self._reason, held=len(serving))
        if serving:
            _, serving = await asyncio.wait(serving, timeout=settings.grace_s)
        for each in self._takers:
            each.cancel()
        if serving:
            await asyncio.wait(serving, timeout=settings.request_timeout_s)
        return len(serving)

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

    async def pulled(self, capability: Capability, delivery: Delivery, circuit: Circuit | None) -> None:
        """Work from the stream."""
        try:
            await self._attempts.serve(capability, delivery, circuit)
        except Exception:
            # One delivery that meets a bug of ours must not end the others; the supervisor sees to its attempt.
            logger.exception("bug", subject=delivery.message.subject)

    async def lined(self, capability: Capability, room: Room, delivery: Delivery, circuit: Circuit | None) -> None:
        """A place in a lane."""
        try:
            await self._seeing.through(capability, room, delivery, circuit)
        except Exception:
            # The place is handed out again; whoever has it then goes on.
            logger.exception("bug", subject=delivery.message.subject)

    async def handed(self, capability: Capability, room: Room, message: Message, circuit: Circuit | None) -> None:
        """Work that somebody who waits for it hands over directly."""
        try:
            await self._reception.serve(capability, room, message, circuit)
        except Exception:
            # Whoever asked gets no answer, and stores the work himself.
            logger.exception("bug", subject=message.subject)

    def _beat(self, lag_s: float) -> Beat:
        quarantine = self._standing.quarantine
        note = f"by {quarantine.by}: {quarantine.reason}".removesuffix(": ") if quarantine is not None else ""
        is_draining = self._draining.is_set()
        return Beat(
            agent=self._agent.name,
            instance=self.instance,
            standing="draining" if is_draining else "quarantined" if quarantine is not None else "live",
            note=self._reason if is_draining else note or self._health.why,
            capabilities={name: self._desks[name].load for name in self._agent.capabilities if name in self._desks},
            held=self._attempts.held,
            lag_s=round(lag_s, 3),
            memory_mb=_memory_mb(),
            health=self._health.level,
            paused=[name for name, brake in self._attempts.brakes.items() if brake.is_on],
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
    _collect_less()
    try:
        run_until_signalled(lambda stop: serve(agent, stop))
    except BusError as error:
        raise SystemExit(f"error: {error}") from error


def _collect_less() -> None:
    """Look for garbage less often, in a process that is ours: hardly anything here is in a cycle, and with a hundred
    attempts under way each look found nothing and took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(_GARBAGE_AFTER, 20, 20)


def _only_error(group: ExceptionGroup[Exception]) -> Exception:
    """What the caller can do something about, if it is that and nothing else."""
    first: Exception = group
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return first if group.split(BusError)[1] is None else group


def _memory_mb() -> int:
    """What this process takes at the moment; where the system does not say, the most it has taken so far."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20

"""Signposts: the routes that stand, as one process knows them. Read once, when they are first needed, and followed from
then on: what a piece of work needs of them costs no way to the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial

import structlog

from bus.broker.connection import Connection, Message
from bus.errors import BusError, MalformedMessage, Unavailable
from bus.format.subjects import live_copy, routed
from bus.log.log import Log
from bus.registry.presence import is_offered
from bus.registry.routes import Turn, turn
from bus.registry.versions import closest
from bus.rules.events import Arm
from bus.rules.route import Route

logger = structlog.get_logger(__name__)

_AGAIN_S = 1.0
# Instances hear of a route within some milliseconds, and make its consumers; a busy one takes longer.
_HEARD = timedelta(seconds=2)


class Signposts:
    """Closed with the client. `standing` are the routes by capability; none before `known` was awaited."""

    def __init__(self, log: Log, connection: Connection) -> None:
        self._log = log
        self._connection = connection
        self._turns: dict[str, Turn] = {}
        self._newest: dict[str, int] = {}
        self._position = 0
        self._reading = asyncio.Lock()
        self._hinted = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._first_look: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.standing: dict[str, Route] = {}
        self.is_known = False

    async def known(self) -> None:
        """Know what stands, and go on knowing it. Raises Unavailable, to all who have waited for the same look."""
        if self.is_known:
            return
        if self._first_look is None or self._first_look.done():
            self._first_look = asyncio.create_task(self.look())
            self._first_look.add_done_callback(_forget)
        try:
            await asyncio.shield(self._first_look)
        except asyncio.CancelledError:
            if self._first_look.cancelled():
                # It is not we who are.
                raise Unavailable("the client is closed") from None
            raise

    async def look(self) -> None:
        """Read what was stored since. Raises Unavailable."""
        if self._following is None:
            # Copies of what is stored are only a reason to look: before the first look, so that nothing is missed.
            told = self._connection.subscribe(live_copy(self._log.subjects.routes), self._hear)
            forget = self._connection.on_reconnect(self._hinted.set)
            self._following = asyncio.create_task(self._follow())
            for end in (forget, told.unsubscribe):
                self._following.add_done_callback(partial(_call, end))
        async with self._reading:
            before = dict(self.standing)
            async for record in self._log.read(self._log.subjects.routes, after=self._position):
                self._position = self._newest[record.subject] = record.position
                try:
                    said = turn(record.envelope(), record.position)
                except MalformedMessage as error:
                    logger.warning("record set aside", position=record.position, error=str(error))
                    continue
                if said is not None and self._log.subjects.route(said.capability) == record.subject:
                    self._note(said)
            self.is_known = True
        if before != self.standing:
            self._changed.set()
            self._changed = asyncio.Event()

    def change(self) -> asyncio.Event:
        """Set as soon as something stands otherwise than now."""
        return self._changed

    def turn(self, capability: str) -> tuple[Turn | None, int]:
        """The newest word on a capability's route, and the position of the newest record on its subject."""
        return self._turns.get(capability), self._newest.get(self._log.subjects.route(capability), 0)

    def arms(self, capability: str, version: str) -> str | None:
        """The versions of its route, if it has one, that an instance of this version belongs to."""
        route = self.standing.get(capability)
        return closest(version, (each.versions for each in route.shares)) if route is not None else None

    def arm(self, capability: str, sticky: str) -> Arm | None:
        """Whom new work of a capability is given to, if a route says so."""
        route = self.standing.get(capability)
        return route.arm(sticky) if route is not None else None

    def needs(self, capabilities: Iterable[str], version: str) -> dict[str, str]:
        """What of these routes give to an instance of this version: each capability, and the one such work is for."""
        found = ((each, self.arms(each, version)) for each in capabilities)
        return {each: routed(versions, each) for each, versions in found if versions is not None}

    async def is_offered(self, capability: str, timeout_s: float, *, ordered: bool = False) -> bool:
        """Whether somebody takes such work now; where a route shares it out, somebody whom it gives any to.

        Raises Unavailable.
        """
        await self.known()
        ask = partial(is_offered, self._connection, self._log.subjects)
        route = self.standing.get(capability)
        # Of those who serve its lanes, anybody will do: work has its place there, and goes to whom it is given.
        is_there = (ordered or route is None) and await ask(capability, timeout_s, ordered=ordered)
        if route is None or (ordered and not is_there):
            return is_there
        asked = (ask(routed(each.versions, capability), timeout_s) for each in route.shares if each.weight > 0)
        return any(await asyncio.gather(*asked))

    def is_new(self, capability: str, now: datetime) -> bool:
        """Whether its route was set so lately that those who are there may still be about to follow it."""
        said = self._turns.get(capability)
        return said is not None and now - said.at < _HEARD

    async def close(self) -> None:
        """Follow nothing more."""
        tasks = {task for task in (self._following, self._first_look) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _note(self, said: Turn) -> None:
        self._turns[said.capability] = said
        if said.route is not None:
            self.standing[said.capability] = said.route
        else:
            self.standing.pop(said.capability, None)

    def _hear(self, _message: Message) -> None:
        self._hinted.set()

    async def _follow(self) -> None:
        while True:
            await self._hinted.wait()
            self._hinted.clear()
            try:
                await self.look()
            except BusError as error:
                logger.warning("routes not followed", error=str(error))
                await asyncio.sleep(_AGAIN_S)
                self._hinted.set()


def _forget(look: asyncio.Task[None]) -> None:
    """Who waited for it has gone, perhaps: then nobody hears why it failed."""
    if not look.cancelled():
        look.exception()


def _call(end: Callable[[], None], _task: asyncio.Task[None]) -> None:
    end()

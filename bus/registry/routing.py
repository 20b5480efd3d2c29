"""Routing: the verbs about routes; a part of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from uuid import uuid4

import structlog

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import MalformedMessage, NotFound, Refused, Unavailable
from bus.format.envelope import envelope
from bus.format.subjects import Subjects, routed
from bus.log.log import Log, VersionConflict
from bus.registry.arrivals import who_is_there
from bus.registry.routes import ROUTE_REMOVED, ROUTE_SET, RouteRemoved, RouteSet, Turn, shares_of, turn
from bus.registry.signposts import Signposts
from bus.settings import Settings

logger = structlog.get_logger(__name__)

_FOLLOWED_S = 2.0
_LOOK_S = 0.01


class Routing:
    """The verbs about routes; a part of the client."""

    settings: Settings
    subjects: Subjects
    log: Log
    source: str
    signposts: Signposts
    connection: Connection

    async def set_route(
        self, capability: str, weights: Mapping[str, float], *, by: str, reason: str = "", seen: int | None = None
    ) -> Turn:
        """Share the work of a capability out among versions of those who have it: `{"1.*": 95, "2.0.0": 5}`.

        An instance belongs to the range that names its version, else to the first that it is in, else to `*`; who
        belongs to none gets nothing. It holds for what becomes ready from now on, in every process as soon as that
        hears of it; what waits for versions that no longer get anything goes to the others. Returns when those who are
        there follow it, or two seconds later. With `seen` it is set only if that is still the newest revision.

        Raises SettingsError, InvalidName; Refused if somebody else was faster; Unavailable.
        """
        shares = shares_of(capability, weights)
        revision, position = await self._newest(capability, seen)
        await self._tell_route(capability, ROUTE_SET, RouteSet(by, capability, shares, revision + 1, reason), position)
        said = await self.route(capability)
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(_FOLLOWED_S):
                await self._followed(capability)
        return said

    async def remove_route(self, capability: str, *, by: str, reason: str = "", seen: int | None = None) -> Turn:
        """Let the work of a capability be for anybody who has it. Raises NotFound if there is no route, and as
        `set_route`."""
        if (await self.route(capability)).route is None:
            raise NotFound(f"{capability!r} has no route: it was removed")
        revision, position = await self._newest(capability, seen)
        await self._tell_route(capability, ROUTE_REMOVED, RouteRemoved(by, capability, revision + 1, reason), position)
        return await self.route(capability)

    async def routes(self) -> list[Turn]:
        """The routes that stand, by capability. Raises Unavailable."""
        await self.signposts.look()
        return [said for name in sorted(self.signposts.standing) if (said := self.signposts.turn(name)[0]) is not None]

    async def route(self, capability: str) -> Turn:
        """The newest revision of a capability's route. Raises NotFound if it never had one, Unavailable."""
        self.subjects.route(capability)
        await self.signposts.look()
        said, _ = self.signposts.turn(capability)
        if said is None:
            raise NotFound(f"{capability!r} has no route, and never had one: its work is for anybody who has it")
        return said

    async def turns(self, capability: str) -> AsyncGenerator[Turn, None]:
        """Every revision of a capability's route, newest first. Raises Unavailable."""
        async with aclosing(self.log.read_back(self.subjects.route(capability))) as records:
            async for record in records:
                try:
                    said = turn(record.envelope(), record.position)
                except MalformedMessage as error:
                    logger.warning("record set aside", position=record.position, error=str(error))
                    continue
                if said is not None:
                    yield said

    async def _followed(self, capability: str) -> None:
        """Wait until each arm of which somebody is there is served."""
        there = await who_is_there(self.connection, self.log, self.settings.beat_s)
        taking = [each for each in there if each.status == "live" and capability in each.capabilities]
        for arm in {self.signposts.arms(capability, each.version) for each in taking} - {None}:
            while True:
                if await self.signposts.is_offered(routed(arm or "", capability), _FOLLOWED_S):
                    break
                await asyncio.sleep(_LOOK_S)

    async def _newest(self, capability: str, seen: int | None) -> tuple[int, int]:
        """The newest revision of a route, and where it stands."""
        await self.signposts.look()
        said, position = self.signposts.turn(capability)
        revision = said.revision if said is not None else 0
        if seen is not None and seen != revision:
            raise Refused(f"the route of {capability!r} is at revision {revision}, not {seen}: look at it first")
        return revision, position

    async def _tell_route(self, capability: str, kind: str, what: object, expected: int) -> None:
        message = envelope(kind, what, id=uuid4().hex, source=self.source, time=utc_now())
        try:
            await self.log.append(self.subjects.route(capability), message, expected=expected)
        except VersionConflict:
            raise Refused(
                f"somebody else has set the route of {capability!r} at this moment: look at it, and say it again"
            ) from None

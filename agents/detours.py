"""Detours: work that waits for versions that nobody runs, or that no longer get any, goes another way.

An arm without a live instance must not make work wait while others could do it. For one lease nothing is done about it:
who is being started again is not missed. If nobody of any arm is there, the work waits, and the herald says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import structlog

from agents.docket import Docket
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, Refused
from bus.format.subjects import routed
from bus.registry.presence import is_offered
from bus.rules.commands import Reroute
from bus.rules.route import Route
from bus.rules.run import Item, RunState
from bus.rules.timers import Timer

logger = structlog.get_logger(__name__)

_AT_ONCE = 500


class Detours:
    """Those of one term of a leader."""

    def __init__(self, client: Client, docket: Docket) -> None:
        self._client = client
        self._docket = docket
        self._lease = timedelta(seconds=client.settings.lease_s)

    async def look(self) -> None:
        """Once. Raises Unavailable."""
        await self._client.signposts.known()
        now = utc_now()
        waiting = [(state, timer, item) for state, timer, item in self._waiting() if timer.at <= now]
        absent = await self._absent({state.capability(timer.phase) or "" for state, timer, _ in waiting})
        found = []
        for state, timer, item in waiting:
            assert item.arm is not None, "what waits for an arm has one"
            capability = state.capability(timer.phase) or ""
            route = self._client.signposts.standing.get(capability)
            gone = absent.get(capability, ())
            # If nobody is there at all, it waits where it belongs.
            without = tuple(gone) if route is not None and _is_served(route, gone) else ()
            is_missed = item.arm.versions in without and timer.at <= now - self._lease
            if route is None or not route.has(item.arm.versions) or is_missed:
                found.append((state, Reroute(timer.phase, timer.item, timer.attempt, without)))
        await asyncio.gather(*(self._go(state, command) for state, command in found[:_AT_ONCE]))

    def _waiting(self) -> Iterable[tuple[RunState, Timer, Item]]:
        """What is ready and was given to an arm."""
        for state, timer in self._docket.ready_since(utc_now()):
            item = state.phases[timer.phase].item(timer.item)
            if item is not None and item.arm is not None:
                yield state, timer, item

    async def _absent(self, capabilities: Iterable[str]) -> dict[str, list[str]]:
        """The arms of each that nobody serves now."""
        client, timeout_s = self._client, self._client.settings.request_timeout_s
        found: dict[str, list[str]] = {}
        for capability in capabilities:
            route = client.signposts.standing.get(capability)
            for each in route.shares if route is not None else ():
                if not await is_offered(
                    client.connection, client.subjects, routed(each.versions, capability), timeout_s
                ):
                    found.setdefault(capability, []).append(each.versions)
        return found

    async def _go(self, state: RunState, command: Reroute) -> None:
        try:
            await self._client.runs.submit(state.run, command)
        except Refused as error:
            logger.debug("not sent another way", run=state.run, phase=command.phase, reason=error.reason)
        except BusError as error:
            logger.warning("not sent another way", run=state.run, phase=command.phase, error=str(error))


def _is_served(route: Route, gone: Iterable[str]) -> bool:
    """Whether somebody is there of those whom the route gives any work."""
    return any(each.weight > 0 and each.versions not in gone for each in route.shares)

"""Guarding: the verbs about services outside that may be sick, slow or dear; a part of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import NotFound, SettingsError
from bus.guards.breaker import Breaker, BreakerClosed, BreakerOpened, BreakerState, Transition
from bus.guards.circuit import Circuit
from bus.guards.fallback import Fallback, Provider, first_answer
from bus.guards.limit import Limit, slate
from bus.guards.quota import Quota, Standing, opened
from bus.guards.switch import Decide, Switch
from bus.log.log import Log
from bus.log.streams import info
from bus.settings import Settings

T = TypeVar("T")


class Guards:
    """The breakers and limits that one process uses, each once. Closed with the client."""

    def __init__(self, log: Log, connection: Connection, settings: Settings, *, source: str) -> None:
        self._log = log
        self._connection = connection
        self._settings = settings
        self._source = source
        self._circuits: dict[str, Circuit] = {}
        self._limits: dict[str, Limit] = {}

    def circuit(self, name: str, policy: Breaker | None) -> Circuit:
        found = self._circuits.get(name)
        if found is None:
            found = self._circuits[name] = Circuit(
                name,
                policy or Breaker(),
                self._log,
                self._connection,
                source=self._source,
                bound_s=self._settings.request_timeout_s,
            )
        elif policy is not None and policy != found.policy:
            raise SettingsError(f"breaker {name!r} is used in this process with another policy: {found.policy}")
        return found

    def limit(self, name: str, quota: Quota | None) -> Limit:
        found = self._limits.get(name)
        if found is None and quota is None:
            raise SettingsError(f"limit {name!r}: say once in this process what it allows, calls_per_s=5 for example")
        if found is None and quota is not None:
            found = Limit(name, quota, self._log, self._connection, self._settings, self._source)
            self._limits[name] = found
        assert found is not None, "it was there or has been made"
        if quota is not None and quota != found.quota:
            raise SettingsError(f"limit {name!r} is used in this process with another quota: {found.quota}")
        return found

    @property
    def open(self) -> list[str]:
        """The breakers that let nobody through."""
        return [name for name, each in self._circuits.items() if each.state.status == "open"]

    async def close(self) -> None:
        """Store what is still to be said, if that can be done in time."""
        circuits = [each.close() for each in self._circuits.values()]
        await asyncio.gather(*circuits, *(each.close() for each in self._limits.values()))


class Guarding:
    """The verbs about breakers, limits and providers; a part of the client."""

    connection: Connection
    log: Log
    settings: Settings
    source: str
    guards: Guards

    def breaker(self, name: str, policy: Breaker | None = None) -> Circuit:
        """The breaker of a service, shared by all processes: `async with client.breaker("openai"):`, or a decorator.

        `policy` is needed once in a process, if it is not the default one. Raises SettingsError for another one, and
        InvalidName.
        """
        return self.guards.circuit(name, policy)

    def limit(self, name: str, quota: Quota | None = None, **allowed: float) -> Limit:
        """A limit that all agents share: `client.limit("openai", calls_per_s=5, cost_per_day=20)`, as in `Quota`.

        What it allows is needed once in a process. Raises SettingsError, InvalidName.
        """
        if allowed:
            unknown = sorted(set(allowed) - set(Quota.__struct_fields__))
            if unknown:
                raise SettingsError(
                    f"limit {name!r}: there is no {unknown[0]}; use {', '.join(Quota.__struct_fields__)}"
                )
            quota = Quota(**allowed)
        return self.guards.limit(name, quota)

    async def fallback(self, providers: Sequence[Provider[T]], *arguments: Any) -> Fallback[T]:
        """The first answer of providers in their order, each called with `arguments`.

        Whose breaker is open, or whose budget is spent, is passed over. Raises NoProvider if none answers; a `Reject`
        of one is raised at once.
        """
        return await first_answer(providers, lambda each: self.breaker(each.name, each.breaker), arguments)

    async def breakers(self) -> list[BreakerState]:
        """Every breaker that has ever opened, by name. Raises Unavailable."""
        subjects, timeout_s = self.log.subjects, self.log.patience_s
        there = await info(self.connection, subjects.stream, timeout_s, subjects=subjects.breakers)
        names = sorted(subjects.named(subject) for subject in there.subjects)
        return [await Switch(name, self.log, source=self.source).refresh() for name in names]

    async def open_breaker(self, name: str, *, by: str, for_s: float | None = None, reason: str = "") -> BreakerState:
        """Let nobody through, for so long or until somebody closes it. Raises InvalidName, Unavailable."""
        if for_s is not None and for_s <= 0:
            raise SettingsError(f"breaker {name!r}: for_s must be over 0, not {for_s}")

        def decide(state: BreakerState, now: datetime) -> Transition:
            retry_at = now + timedelta(seconds=for_s) if for_s is not None else None
            return BreakerOpened(breaker=name, by=by, retry_at=retry_at, trips=max(state.trips, 1), reason=reason)

        return await self._by_hand(name, decide)

    async def close_breaker(self, name: str, *, by: str, reason: str = "") -> BreakerState:
        """Let everybody through again. Raises NotFound if it has never opened, InvalidName, Unavailable."""

        def decide(state: BreakerState, now: datetime) -> Transition | None:
            if not state.position:
                raise NotFound(f"there is no breaker {name!r}: none of this name has ever opened")
            return BreakerClosed(breaker=name, by=by, reason=reason) if state.status != "closed" else None

        return await self._by_hand(name, decide)

    async def limits(self) -> dict[str, Standing]:
        """How every limit stands now, by name. Raises Unavailable."""
        subjects, timeout_s = self.log.subjects, self.log.patience_s
        prefix = f"$KV.{subjects.limits_bucket}."
        try:
            there = await info(self.connection, f"KV_{subjects.limits_bucket}", timeout_s, subjects=f"{prefix}*")
        except NotFound:
            return {}
        found = {}
        for subject in sorted(there.subjects):
            name = subjects.named(subject)
            standing = await slate(name, self.log, self.connection, self.settings).read()
            if standing is not None:
                found[name] = opened(standing, standing.quota, utc_now().timestamp())
        return found

    async def _by_hand(self, name: str, decide: Decide) -> BreakerState:
        switch = Switch(name, self.log, source=self.source)
        await switch.refresh()
        await switch.change(decide)
        return switch.state

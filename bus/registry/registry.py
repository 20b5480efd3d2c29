"""The registry: which agents are there, how they stand, and what operators want of them.

Who is there now is asked, and everybody answers; who came and went, and why, is in the log. Nothing is kept in
between that could be wrong.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import MalformedMessage, NotFound, SettingsError
from bus.format.envelope import envelope
from bus.format.subjects import Subjects, name
from bus.log.log import Log
from bus.registry.arrivals import Arrivals, event_in, who_is_there
from bus.registry.card import AgentDeregistered, AgentLost, Card, ended
from bus.registry.orders import (
    AGENT_DRAINED,
    AGENT_QUARANTINED,
    AGENT_RELEASED,
    AREA,
    AgentDrained,
    AgentQuarantined,
    AgentReleased,
    Orders,
    Quarantine,
    Whom,
)
from bus.registry.roster import Change, Instance, instance_of
from bus.registry.versions import check_range
from bus.settings import Settings

logger = structlog.get_logger(__name__)


class Registry:
    """The verbs about agents; a part of the client."""

    connection: Connection
    subjects: Subjects
    log: Log
    settings: Settings
    source: str

    async def agents(
        self, capability: str | None = None, *, version: str | None = None, tag: str | None = None
    ) -> list[Instance]:
        """Every instance there is now, by agent and instance; those with a capability, of a version or a range of them
        (`>=1.2,<2`), with a tag of the agent or of the capability.

        They are asked, which takes some milliseconds; who does not answer is suspected. Schemas are left out: see
        `agent`. Raises SettingsError for what is no range, Unavailable.
        """
        if version is not None:
            check_range(version)
        found = await who_is_there(self.connection, self.log, self.settings.beat_s)
        wanted = [each for each in found if each.matches(capability=capability, version=version, tag=tag)]
        return sorted(wanted, key=lambda each: (each.agent, each.instance))

    async def agent(self, instance: str) -> Instance:
        """One instance with its whole card, schemas included, whether it is there or gone. Raises NotFound."""
        name(instance, "instance")
        card: Card | None = None
        end: AgentDeregistered | AgentLost | None = None
        async with aclosing(self.log.read_back(f"{self.subjects.namespace}.agent.*.{instance}")) as records:
            async for record in records:
                event = event_in(record)
                if isinstance(event, Card):
                    card = event
                    break
                end = end or event
        if card is None:
            raise NotFound(f"no instance {instance!r} has ever registered in this log")
        for each in await self.agents():
            if each.instance == instance:
                return msgspec.structs.replace(each, capabilities=card.capabilities)
        return instance_of(card, None, "gone", ended(end) if end is not None else "nobody has seen it end yet")

    async def watch_agents(self) -> AsyncGenerator[Change, None]:
        """Who is there, one by one, and then whoever comes, goes or stands otherwise, as it happens; never ends.

        An instance that is killed is gone as soon as the log says so; a frozen one is suspected within two beats.
        Close it (`contextlib.aclosing`) if you leave it early. Raises Unavailable.
        """
        arrivals = Arrivals(self.connection, self.log, self.settings.beat_s)
        async with aclosing(arrivals.changes()) as changes:
            async for change in changes:
                yield change

    async def drain_agents(
        self, agent: str, *, instance: str | None = None, version: str | None = None, by: str, reason: str = ""
    ) -> None:
        """Let instances of an agent that are there now finish what they have begun, and end. Raises Unavailable."""
        await self._order(AGENT_DRAINED, AgentDrained(by, _whom(agent, instance, version), reason))

    async def quarantine_agents(
        self, agent: str, *, instance: str | None = None, version: str | None = None, by: str, reason: str = ""
    ) -> None:
        """Let instances of an agent take nothing more until they are released; also those that start later.

        What they have begun they finish, and they go on running. Raises Unavailable.
        """
        await self._order(AGENT_QUARANTINED, AgentQuarantined(by, _whom(agent, instance, version), reason))

    async def release_agents(
        self, agent: str, *, instance: str | None = None, version: str | None = None, by: str, reason: str = ""
    ) -> None:
        """End a quarantine of exactly these. Raises NotFound if there is none, Unavailable."""
        whom = _whom(agent, instance, version)
        standing = [each.whom for each in await self.quarantines()]
        if whom not in standing:
            others = ", ".join(str(each) for each in standing if each.agent == agent)
            raise NotFound(f"{whom} is not in quarantine" + (f"; of this agent there are: {others}" if others else ""))
        await self._order(AGENT_RELEASED, AgentReleased(by, whom, reason))

    async def quarantines(self) -> list[Quarantine]:
        """Every quarantine that stands, oldest first. Raises Unavailable."""
        orders = Orders()
        async for record in self.log.read(self.subjects.ops(AREA)):
            try:
                orders.note(record.envelope(), record.position)
            except MalformedMessage as error:
                logger.warning("record set aside", position=record.position, error=str(error))
        return orders.quarantines

    async def _order(self, kind: str, what: object) -> None:
        message = envelope(kind, what, id=uuid4().hex, source=self.source, time=utc_now())
        await self.log.append(self.subjects.ops(AREA), message)


def _whom(agent: str, instance: str | None, version: str | None) -> Whom:
    """Raises InvalidName, SettingsError."""
    if instance is not None and version is not None:
        raise SettingsError("name an instance or a version, not both: an instance has one version")
    if instance is not None:
        name(instance, "instance")
    return Whom(name(agent, "agent"), instance, check_range(version) if version is not None else None)

"""The herald: says in the log what its supervisor has recovered, and which work nobody offers to do.

It says it after the fact, and best-effort: what was done is in the runs' own events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import uuid4

import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError
from bus.format.envelope import envelope
from bus.format.subjects import routed
from bus.registry.presence import is_offered
from bus.rules.run import RunState
from bus.rules.timers import Timer
from bus.runs.recovery import AREA, RECOVERED, STARVED, Recovered, Starved, recovery

logger = structlog.get_logger(__name__)


class Need(NamedTuple):
    """What work waits for: a capability, of these versions if a route gave it to them, `ordered` if it is in line."""

    capability: str
    versions: str
    ordered: bool

    @classmethod
    def of(cls, state: RunState, phase: str, index: int | None) -> Need:
        item = state.phases[phase].item(index)
        versions = item.arm.versions if item is not None and item.arm is not None else ""
        return cls(state.capability(phase) or "", versions, state.is_in_line)

    def __str__(self) -> str:
        return f"{self.capability!r}" + (f" of version {self.versions}" if self.versions else "")


class Herald:
    """What one supervisor says in one term."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._missed: set[Need] = set()
        self._starved: set[Need] = set()

    async def recovered(self, what: Sequence[Recovered], *, on_start: bool = False) -> None:
        """Say what was recovered, if anything was."""
        for each in what:
            logger.warning(
                "recovered", run=each.run, phase=each.phase, item=each.item, attempt=each.attempt, cause=each.cause
            )
        if what:
            await self._say(RECOVERED, recovery(self._name, what, on_start=on_start))

    async def look(self, waiting: Iterable[tuple[RunState, Timer]]) -> None:
        """Say of each capability that work waits for and nobody offers, once, until somebody does.

        Nobody has to offer it twice in a row: who is being started again is not missed.
        """
        by_need: defaultdict[Need, list[tuple[RunState, Timer]]] = defaultdict(list)
        for state, timer in waiting:
            by_need[Need.of(state, timer.phase, timer.item)].append((state, timer))
        unoffered = {each for each in by_need if not await self.is_offered(each)}
        starved = unoffered & self._missed
        for need in starved - self._starved:
            works = by_need[need]
            state, oldest = min(works, key=lambda work: work[1].at)
            logger.warning("starved", capability=str(need), waiting=len(works), since=oldest.at)
            said = Starved(self._name, need.capability, oldest.at, state.run, oldest.phase, len(works), need.versions)
            await self._say(STARVED, said)
        self._missed, self._starved = unoffered, starved

    async def is_offered(self, need: Need) -> bool:
        """Whether a live instance offers it, `ordered` if it stands in line, as far as anybody can tell."""
        client, timeout_s = self._client, self._client.settings.request_timeout_s
        there = client.connection, client.subjects
        if need.versions and not await is_offered(*there, routed(need.versions, need.capability), timeout_s):
            return False
        # Whoever has its versions has it, and a place in line is anybody's.
        is_told = bool(need.versions) and not need.ordered
        return is_told or await is_offered(*there, need.capability, timeout_s, ordered=need.ordered)

    async def _say(self, kind: str, what: object) -> None:
        client = self._client
        message = envelope(kind, what, id=uuid4().hex, source=client.source, time=utc_now())
        try:
            await client.log.append(client.subjects.ops(AREA), message)
        except BusError as error:
            logger.warning("not announced", what=kind, error=str(error))

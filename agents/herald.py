"""The herald: says in the log what its supervisor has recovered, and which work nobody offers to do.

It says it after the fact, and best-effort: what was done is in the runs' own events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from uuid import uuid4

import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError
from bus.format.envelope import envelope
from bus.registry.presence import is_offered
from bus.rules.run import RunState
from bus.rules.timers import Timer
from bus.runs.recovery import AREA, RECOVERED, STARVED, Recovered, Starved, recovery

logger = structlog.get_logger(__name__)


class Herald:
    """What one supervisor says in one term."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._missed: set[tuple[str, bool]] = set()
        self._starved: set[tuple[str, bool]] = set()

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
        by_need: defaultdict[tuple[str, bool], list[tuple[RunState, Timer]]] = defaultdict(list)
        for state, timer in waiting:
            by_need[state.capability(timer.phase) or "", state.is_in_line].append((state, timer))
        unoffered = {each for each in by_need if not await self.is_offered(each[0], ordered=each[1])}
        starved = unoffered & self._missed
        for capability, ordered in starved - self._starved:
            works = by_need[capability, ordered]
            state, oldest = min(works, key=lambda work: work[1].at)
            logger.warning("starved", capability=capability, waiting=len(works), since=oldest.at)
            said = Starved(self._name, capability, oldest.at, state.run, oldest.phase, len(works))
            await self._say(STARVED, said)
        self._missed, self._starved = unoffered, starved

    async def is_offered(self, capability: str, *, ordered: bool) -> bool:
        """Whether a live instance offers it, `ordered` if it stands in line, as far as anybody can tell."""
        client, timeout_s = self._client, self._client.settings.request_timeout_s
        return await is_offered(client.connection, client.subjects, capability, timeout_s, ordered=ordered)

    async def _say(self, kind: str, what: object) -> None:
        client = self._client
        message = envelope(kind, what, id=uuid4().hex, source=client.source, time=utc_now())
        try:
            await client.log.append(client.subjects.ops(AREA), message)
        except BusError as error:
            logger.warning("not announced", what=kind, error=str(error))

"""While a run is followed: a word, once, about a phase that waits for a capability that nobody offers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError
from bus.rules.run import RunState
from console.offers import unserved

_EVERY_S = 2.0


@asynccontextmanager
async def lookout(client: Client, run: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Look every two seconds while the block runs. `say` is told; again only if somebody came and left."""
    looking = asyncio.create_task(_look(client, run, say))
    try:
        yield
    finally:
        looking.cancel()


async def _look(client: Client, run: str, say: Callable[[str], None]) -> None:
    told: set[str] = set()
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            waiting = untaken(await client.runs.load(run), utc_now())
            missing = await unserved(client, waiting.values())
        except BusError:
            # The line is lost; whoever follows waits for it too.
            continue
        lonely = {phase for phase, capability in waiting.items() if capability in missing}
        for phase in waiting:
            if phase in lonely - told:
                say(f"{phase} waits: no live agent offers {waiting[phase]!r}: phasebus agent run FILE.py:agent")
        told = lonely


def untaken(state: RunState, now: datetime) -> dict[str, str]:
    """The phases with work that could be taken now, each with its capability."""
    found: dict[str, str] = {}
    for key, phase in state.phases.items():
        capability = state.capability(key)
        due = any(item.status == "ready" and item.ready_at is not None and item.ready_at <= now for item in phase.items)
        if capability is not None and due:
            found[key] = capability
    return found

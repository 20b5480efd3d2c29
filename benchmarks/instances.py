"""Many instances in one process, each registered and with a connection of its own, that take no work: for
`benchmarks.registry`.

`python -m benchmarks.instances URL FIRST COUNT`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from uuid import uuid4

from bus import Agent, Settings, logs
from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.format.envelope import envelope
from bus.format.subjects import Subjects
from bus.log.log import Log
from bus.registry.card import AGENT_REGISTERED, Card
from bus.registry.presence import Beat, Load, Presence
from bus.registry.service import Service, Tally
from bus.worker.introduction import card

_SUBJECTS = Subjects()
_WORK = "idle.work"


async def main(url: str, first: int, count: int) -> None:
    logs.configure("warning")
    agent = Agent("idle", version="1.2.0", tags=["benchmark"])

    @agent.capability(_WORK, concurrency=8)
    async def work(query: dict[str, int]) -> list[float]:
        return [float(value) for value in query.values()]

    settings = Settings.load(url=url)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for number in range(first, first + count):
            one = card(agent, f"idle-{number}", "host", number)
            connection = await stack.enter_async_context(Connection.open(url, name=f"agent/idle/{one.instance}"))
            presence = Presence(connection, _SUBJECTS, one, _beating(one), settings.beat_s)
            await stack.enter_async_context(presence.answering())
            service = Service(connection, _SUBJECTS, one, {each: Tally() for each in one.capabilities})
            await stack.enter_async_context(service.answering())
            came = envelope(AGENT_REGISTERED, one, id=uuid4().hex, source="/benchmark", time=utc_now())
            await Log(connection, _SUBJECTS, settings).append(_SUBJECTS.agent(one.agent, one.instance), came)
            presence.offer(True)
            presence.appear()
            tasks.create_task(presence.beating())


def _beating(one: Card) -> Callable[[float], Beat]:
    return lambda lag_s: Beat(
        agent=one.agent, instance=one.instance, capabilities={_WORK: Load(0, 8)}, lag_s=round(lag_s, 3), memory_mb=50
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

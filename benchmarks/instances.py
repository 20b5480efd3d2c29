"""Many instances in one process, each with a connection of its own, and on it all that an idle worker has: for
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
from bus.broker.pull import Intake
from bus.clock import utc_now
from bus.format.envelope import envelope
from bus.format.subjects import Subjects
from bus.log.log import Log
from bus.log.streams import EVERYBODY, consumer_of, ensure_consumer
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
            if number == first:
                await ensure_consumer(connection, _SUBJECTS, _WORK, settings)
            presence = Presence(connection, _SUBJECTS, one, _beating(one), settings.beat_s)
            await stack.enter_async_context(presence.answering())
            service = Service(connection, _SUBJECTS, one, {each: Tally() for each in one.capabilities})
            await stack.enter_async_context(service.answering())
            came = envelope(AGENT_REGISTERED, one, id=uuid4().hex, source="/benchmark", time=utc_now())
            await Log(connection, _SUBJECTS, settings).append(_SUBJECTS.agent(one.agent, one.instance), came)
            presence.offer(True)
            presence.appear()
            tasks.create_task(presence.beating())
            tasks.create_task(_pulling(connection).run())


def _beating(one: Card) -> Callable[[float], Beat]:
    return lambda lag_s: Beat(
        agent=one.agent, instance=one.instance, capabilities={_WORK: Load(0, 8)}, lag_s=round(lag_s, 3), memory_mb=50
    )


def _pulling(connection: Connection) -> Intake:
    intake = Intake(
        connection,
        _SUBJECTS.work_stream,
        consumer_of(_WORK),
        deliver=lambda _: None,
        missing=_nothing,
        group=EVERYBODY,
    )
    intake.grant(8)
    return intake


async def _nothing() -> None:
    """The consumer is there."""


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

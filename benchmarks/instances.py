"""Many instances in one process, each with a connection of its own: for `benchmarks.registry`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

from bus.broker.connection import Connection
from bus.format.subjects import Subjects
from bus.handlers.agent import Agent
from bus.registry.card import Card
from bus.registry.presence import Beat, Load, Presence
from bus.registry.service import Service, Tally
from bus.worker.introduction import card


async def main(url: str, first: int, count: int) -> None:
    agent = Agent("idle", version="1.2.0", tags=["benchmark"])

    @agent.capability("idle.work", concurrency=8)
    async def work(query: dict[str, int]) -> list[float]:
        return [float(value) for value in query.values()]

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for number in range(first, first + count):
            one = card(agent, f"idle-{number}", "host", number)
            name = f"agent/idle/{one.instance}"
            connection = await stack.enter_async_context(Connection.open(url, name=name))
            presence = Presence(connection, Subjects(), one, _beating(one), 1.0)
            await stack.enter_async_context(presence.answering())
            service = Service(connection, Subjects(), one, {each: Tally() for each in one.capabilities})
            await stack.enter_async_context(service.answering())
            presence.offer(True)
            tasks.create_task(_begin(presence, number / 1_000))


def _beating(one: Card) -> Callable[[float], Beat]:
    return lambda lag_s: Beat(
        agent=one.agent, instance=one.instance, capabilities={"idle.work": Load(0, 8)}, lag_s=lag_s, memory_mb=50
    )


async def _begin(presence: Presence, after_s: float) -> None:
    """Not all at once: processes start when they like."""
    await asyncio.sleep(after_s)
    presence.appear()
    await presence.beating()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

"""An agent with every fault that a doctor should know: it sleeps, blocks its loop, falls silent, dies, or says no."""

import asyncio
import os
import time

from bus import Agent, Breaker, Context, Reject

agent = Agent("patient")


@agent.capability("sleep", concurrency=8)
async def sleep(query: dict[str, float], context: Context) -> None:
    """Sleeps `s` seconds."""
    await asyncio.sleep(query["s"])


@agent.capability("block")
async def block(query: dict[str, float]) -> None:
    """Blocks the event loop for `s` seconds."""
    time.sleep(query["s"])  # noqa: ASYNC251 - a blocked loop is the fault


@agent.capability("mumble")
async def mumble(query: dict[str, float], context: Context) -> None:
    """Says how far it is three times unless it is `dumb`, and then nothing for `s` seconds."""
    for step in range(0 if query.get("dumb") else 3):
        await context.progress(step / 10, f"step {step}")
        await asyncio.sleep(0.05)
    await asyncio.sleep(query["s"])


@agent.capability("locked")
async def locked(query: dict[str, float], context: Context) -> None:
    """Waits for a lock."""
    async with context.client.lock("deploy", timeout_s=60):
        pass


@agent.capability("guarded", breaker=Breaker(probe_s=60))
async def guarded(query: dict[str, float]) -> None:
    """Not done while its breaker is open."""


@agent.capability("die", isolation="process")
def die(query: dict[str, float]) -> None:
    """Ends its process."""
    os._exit(9)


@agent.capability("fragile", on_dead="pause")
async def fragile(query: dict[str, float]) -> None:
    """Nothing more of it is taken after the first death."""
    raise Reject("there is no such sku")


@agent.capability("queued", concurrency=8, ordered=True, on_dead="park")
async def queued(query: dict[str, float]) -> None:
    """One after the other; what is to take less than no time is refused, and holds its key."""
    if query["s"] < 0:
        raise Reject("there is no such time")
    await asyncio.sleep(query["s"])


@agent.capability("refuse")
async def refuse(query: dict[str, float]) -> None:
    raise Reject("there is no such sku")


@agent.capability("stumble")
async def stumble(query: dict[str, float]) -> None:
    raise ConnectionError("the line is down")


if __name__ == "__main__":
    agent.run()

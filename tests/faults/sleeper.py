"""An agent that takes its time, for tests that kill, freeze and block it."""

import asyncio
import time

from bus import Agent, Context

agent = Agent("sleeper")


@agent.capability("sleep", concurrency=2)
async def sleep(query: dict[str, float], context: Context) -> int:
    """Sleeps `s` seconds the first time, and returns at once after that; `block` blocks the event loop instead."""
    if context.attempt == 1:
        time.sleep(query.get("block", 0.0))  # noqa: ASYNC251 - a blocked loop is the fault
        await asyncio.sleep(query.get("s", 0.0))
    return context.attempt


@agent.capability("nap", concurrency=2)
async def nap(query: dict[str, float]) -> float:
    """Sleeps `s` seconds."""
    await asyncio.sleep(query["s"])
    return query["s"]


if __name__ == "__main__":
    agent.run()

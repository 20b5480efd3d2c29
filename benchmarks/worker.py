"""The agent the benchmarks run: it does nothing, or sleeps."""

import asyncio

from bus import Agent

agent = Agent("bench")


@agent.capability("noop", concurrency=128)
async def noop(_: object) -> None:
    """Nothing."""


@agent.capability("nap")
async def nap(seconds: float) -> None:
    """Sleeps."""
    await asyncio.sleep(seconds)


if __name__ == "__main__":
    from bus import logs

    logs.configure("warning")
    agent.run()

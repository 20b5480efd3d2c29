"""The agent that everything is done to: `python -m benchmarks.causes.patient NAME CAPABILITY...`.

What it offers is one of the behaviours below, or one with a name behind a dot: `hold.3` is a `hold` of one's own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any

from bus import Agent, Breaker, Context

_LONG_S = 3600.0


async def hold(query: dict[str, Any], context: Context) -> None:
    """Takes its time; with `says` it says now and then how far it is."""
    for step in range(query.get("says", 0)):
        await context.progress(0.1 + step / 100)
        await asyncio.sleep(query["gap_s"])
    await asyncio.sleep(query.get("s", _LONG_S))


async def block(query: dict[str, Any]) -> None:
    """Blocks the event loop, some time after it has begun."""
    await asyncio.sleep(query["after_s"])
    time.sleep(_LONG_S)  # noqa: ASYNC251 - a blocked loop is the fault


async def talk(query: dict[str, Any], context: Context) -> None:
    """Says how far it is, `says` times; then it is done, or with `for_ever` waits for what never comes."""
    for step in range(query["says"]):
        await context.progress(0.1 + step / (query["says"] + 1))
        await asyncio.sleep(query["gap_s"])
    if query.get("for_ever"):
        await asyncio.Event().wait()


async def lock(query: dict[str, Any], context: Context) -> None:
    """Waits for a lock that somebody else has."""
    async with context.client.lock(query["name"], timeout_s=_LONG_S):
        pass


BEHAVIOURS: dict[str, Callable[..., Any]] = {each.__name__: each for each in (hold, block, talk, lock)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("capabilities", nargs="+")
    parser.add_argument("--places", type=int, default=200)
    parser.add_argument("--silence", type=float, default=None)
    parser.add_argument("--breaker", action="store_true")
    chosen = parser.parse_args()
    agent = Agent(chosen.name)
    breaker = Breaker(probe_s=_LONG_S) if chosen.breaker else None
    for capability in chosen.capabilities:
        behaviour = BEHAVIOURS[capability.partition(".")[0]]
        agent.capability(capability, concurrency=chosen.places, silence_s=chosen.silence, breaker=breaker)(behaviour)
    agent.run()

"""The agent the recovery benchmark does things to: what it takes, it does not give back the first time.

`python -m benchmarks.holder NAME CAPABILITY` offers that one only, one at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from bus import Agent, Context


async def hold(_: dict[str, float], context: Context) -> None:
    """Holds on for ever, the first time."""
    if context.attempt == 1:
        await asyncio.sleep(3600)


async def block(query: dict[str, float], context: Context) -> None:
    """Blocks its event loop for `s` seconds, the first time."""
    if context.attempt == 1:
        time.sleep(query["s"])  # noqa: ASYNC251 - a blocked loop is the fault


async def nap(query: dict[str, float]) -> None:
    """Sleeps `s` seconds."""
    await asyncio.sleep(query["s"])


HANDLERS: dict[str, tuple[Callable[..., Any], float | None]] = {
    "hold": (hold, None),
    "block": (block, None),
    "mute": (hold, 1.0),
    "nap": (nap, None),
}

if __name__ == "__main__":
    agent = Agent("holder")
    handler, silence_s = HANDLERS[sys.argv[2]]
    agent.capability(sys.argv[2], silence_s=silence_s)(handler)
    agent.run()

"""An agent of the version that its environment says: what is slow is given up by nobody but whoever kills it."""

from __future__ import annotations

import asyncio
import os

from bus import Agent

agent = Agent("pricing", version=os.environ["PRICING_VERSION"])


@agent.capability("price", concurrency=2)
async def price(_: int) -> str:
    await asyncio.sleep(0.05)
    return agent.version


if __name__ == "__main__":
    agent.run()

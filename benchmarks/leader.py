"""A supervisor in a process of its own: for `benchmarks.registry`.

`python -m benchmarks.leader URL SYSTEM_URL`
"""

from __future__ import annotations

import asyncio
import sys

from agents.supervisor import Supervisor
from bus import connect, logs


async def main(url: str, system_url: str) -> None:
    logs.configure("warning")
    async with connect(url, system_url=system_url, name="supervisor", alone=False) as client:
        await Supervisor(client, "benchmark").run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))

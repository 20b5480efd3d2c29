"""A supervisor in a process of its own, which leads or stands by: `python -m benchmarks.chaos.supervisor NAME`."""

from __future__ import annotations

import asyncio
import sys

from agents.supervisor import Supervisor
from bus import connect
from bus.errors import BusError
from bus.signals import until_signalled


async def serve(name: str, stop: asyncio.Event) -> None:
    async with connect(name="supervisor", alone=False) as client:
        await Supervisor(client, name).run(stop)


if __name__ == "__main__":
    try:
        asyncio.run(until_signalled(lambda stop: serve(sys.argv[1], stop)))
    except BusError as error:
        raise SystemExit(f"error: {error}") from error

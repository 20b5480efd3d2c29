"""Phasebus: `ask`, question and answer in the log; with `fast`, nothing is stored.

`python -m benchmarks.peers.with_phasebus URL [fast]`; its worker is `benchmarks/worker.py`.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.peers.measuring import measure
from bus import connect, logs


async def main(url: str, how: str = "") -> None:
    logs.configure("warning")
    async with connect(url) as client:
        while not await client.agents("noop"):
            await asyncio.sleep(0.05)
        await measure(lambda: client.ask("noop", 1, fast=how == "fast"), repeats=300, total=3_000)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

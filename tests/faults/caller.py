"""A process that uses a breaker or a limit, and writes down what it was let do; for tests that stop it."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from bus import Breaker, CircuitOpen, Quota, connect

POLICY = Breaker(calls=4, cooldown_s=0.5, longest_s=1, probe_s=2)
QUOTA = Quota(calls_per_s=200)


async def probe(url: str, notes: Path) -> None:
    """Be let through as soon as possible, then hang."""
    async with connect(url) as client:
        circuit = client.breaker("sick", POLICY)
        while True:
            try:
                async with circuit:
                    note(notes, "through")
                    await asyncio.sleep(600)
            except CircuitOpen:
                await asyncio.sleep(0.05)


async def take(url: str, notes: Path, seconds: str, name: str) -> None:
    """Take as much as there is, from several tasks, for a while."""
    async with connect(url) as client:
        limit = client.limit(name, QUOTA)
        ends = time.monotonic() + float(seconds)
        taken: list[float] = []

        async def worker() -> None:
            while time.monotonic() < ends:
                await limit.take(timeout_s=300)
                taken.append(time.time())

        note(notes, "ready")
        try:
            await asyncio.gather(*(worker() for _ in range(5)))
        finally:
            note(notes, "\n".join(map(repr, taken)))


def note(notes: Path, text: str) -> None:
    with notes.open("a") as file:
        file.write(f"{text}\n")


if __name__ == "__main__":
    what, url, notes, *rest = sys.argv[1:]
    asyncio.run({"probe": probe, "take": take}[what](url, Path(notes), *rest))

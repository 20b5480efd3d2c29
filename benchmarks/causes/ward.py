"""The ward: a bus, the processes on it, and runs to which something has been done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

from benchmarks.chaos.company import Post, surroundings
from bus import Client, Phase, Plan
from bus.broker.server import Server

_BOUND_S = 60.0
LEASE_S = 3.0


class Ward:
    """One bus. `random` decides what the seed decides; `exits` are what is to be ended at the end."""

    def __init__(self, server: Server, client: Client, folder: Path, random: Random, exits: AsyncExitStack) -> None:
        self.server = server
        self.client = client
        self.random = random
        self.exits = exits
        self._folder = folder
        self._names = 0

    def name(self, word: str) -> str:
        """A name nobody else has."""
        self._names += 1
        return f"{word}.{self._names}"

    async def process(
        self, *capabilities: str, places: int = 200, silence_s: float | None = None, breaker: bool = False
    ) -> Post:
        """An agent in a process of its own, once it answers. It is killed at the end."""
        told = ["--places", str(places), *(["--silence", str(silence_s)] if silence_s else [])]
        told += ["--breaker"] if breaker else []
        post = Post(
            f"patient-{capabilities[0].replace('.', '-')}",
            "benchmarks.causes.patient",
            self._folder,
            surroundings(self.server, LEASE_S),
            *capabilities,
            *told,
        )
        self.exits.callback(_end, post)
        await self.until(lambda: self._offers(post, capabilities[0]))
        return post

    async def start(self, capability: str, input: dict[str, object], *, plan: str = "", **phase: object) -> str:
        """A run of one phase; of a plan of its own, unless the plan's past is to count."""
        one = Phase("work", capability, input=input, **phase)  # type: ignore[arg-type]
        return await self.run(Plan(plan or self.name("plan").replace(".", "-"), phases=[one]))

    async def run(self, plan: Plan) -> str:
        return (await self.client.start(plan)).run

    async def held(self, run: str) -> str:
        """The run, once somebody has its work."""

        async def is_held() -> bool:
            return any(True for _ in (await self.client.runs.load(run)).held())

        await self.until(is_held)
        return run

    async def ended(self, run: str) -> None:
        await self.client.result(run, timeout_s=_BOUND_S)

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(_BOUND_S):
            while not await condition():
                await asyncio.sleep(0.05)

    async def _offers(self, post: Post, capability: str) -> bool:
        return any(each.pid == post.pid and capability in each.capabilities for each in await self.client.agents())


def _end(post: Post) -> None:
    post.signal(signal.SIGCONT)
    post.end()

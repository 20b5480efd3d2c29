"""Synadia's agents: a prompt to an agent found on NATS, its text streamed back. Nothing is stored.

`python -m benchmarks.peers.with_synadia worker|ask|hold FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import nats
from synadia_ai.agent_service import AgentService  # type: ignore[import-not-found]
from synadia_ai.agents import Agents, ResponseChunk  # type: ignore[import-not-found]

from benchmarks.peers import measuring

_AT_ONCE = 128


async def _serve(envelope: Any, stream: Any) -> None:
    verb, _, argument = envelope.prompt.partition(" ")
    if verb == "hold":
        await measuring.hold(argument)
    await stream.send(argument)


async def worker() -> None:
    connection = await nats.connect(measuring.URL)
    service = AgentService(
        agent="peer",
        owner="peer",
        session_name="peer",
        nc=connection,
        description="peer",
        max_concurrent_prompts=_AT_ONCE,
    )
    service.on_prompt(_serve)
    await service.start()
    await asyncio.Event().wait()


async def ask(prompt: str = "work 1") -> None:
    connection = await nats.connect(measuring.URL)
    agents = Agents(nc=connection)
    while not (found := await agents.discover()):
        await asyncio.sleep(0.1)

    async def do() -> object:
        return "".join([each.text async for each in found[0].prompt(prompt) if isinstance(each, ResponseChunk)])

    await (do() if prompt.startswith("hold") else measuring.measure(do))
    await agents.close()
    await connection.close()


async def send(folder: str) -> None:
    await ask(f"hold {folder}")


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    roles: measuring.Roles = {"worker": worker, "ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))

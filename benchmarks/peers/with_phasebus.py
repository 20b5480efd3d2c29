"""Phasebus: `ask`, question and answer in the log; with `fast`, nothing is stored. Its server has a supervisor, as that
of `phasebus up`.

`python -m benchmarks.peers.with_phasebus host|worker|ask [fast]|hold FOLDER [fast]`
"""

from __future__ import annotations

import asyncio
import os
import sys

from agents.supervisor import Supervisor
from benchmarks.peers import measuring
from bus import Agent, connect, logs
from bus.signals import until_signalled

agent = Agent("peer")


@agent.capability("work", concurrency=128)
async def work(value: int) -> int:
    """Nothing."""
    return value


@agent.capability("hold")
async def hold(folder: str) -> None:
    """Holds on for a second."""
    await measuring.hold(folder)


async def host() -> None:
    async def supervise(stop: asyncio.Event) -> None:
        system = os.environ["PEER_SYSTEM_URL"]
        async with connect(measuring.URL, system_url=system, name="supervisor", alone=False) as client:
            await Supervisor(client, "supervisor").run(stop)

    await until_signalled(supervise)


async def ask(how: str = "") -> None:
    async with connect(measuring.URL) as client:
        while not await client.agents("work"):
            await asyncio.sleep(0.05)
        await measuring.measure(lambda: client.ask("work", 1, fast=how == "fast"))


async def send(folder: str, how: str = "") -> None:
    async with connect(measuring.URL) as client:
        while len(await client.agents("hold")) < 2:
            await asyncio.sleep(0.05)
        await client.ask("hold", folder, fast=how == "fast")


if __name__ == "__main__":
    logs.configure("warning")
    role, *arguments = sys.argv[1:]
    if role == "worker":
        agent.run()
    else:
        roles: measuring.Roles = {"host": host, "ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))

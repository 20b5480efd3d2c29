"""What waits keeps its place in the order when instances die: with work in hand, and with more on its way to them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus import Client, connect
from bus.broker.server import Server
from bus.rules.events import PhaseStarted
from tests.harness import BOUND_S, agent_processes, agents_there, happenings, pid_of, supervised, until

SLEEPER = Path(__file__).with_name("sleeper.py")


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def started(client: Client, run: str) -> list[PhaseStarted]:
    async with asyncio.timeout(BOUND_S):
        return [each.event for each in await happenings(client, run) if isinstance(each.event, PhaseStarted)]


async def holder_of(client: Client, run: str) -> str:
    async for each in client.watch(run):
        if isinstance(each.event, PhaseStarted):
            return each.event.instance
    raise AssertionError(f"{run} was never taken")


async def test_urgent_work_of_a_killed_instance_is_begun_again_before_what_is_not_urgent(
    server: Server, client: Client
) -> None:
    with agent_processes(server, SLEEPER, 2):
        async with supervised(server):
            await agents_there(client, 2)
            urgent = await client.send("sleep", {"s": 30.0}, priority="high", sender="customer-7")
            instance = await holder_of(client, urgent.run)
            others = [(await client.send("nap", {"s": 0.02})).run for _ in range(40)]
            behind = [(await client.send("sleep", {"s": 0.2})).run for _ in range(30)]
            os.kill(await pid_of(client, instance), signal.SIGKILL)
            attempts = await started(client, urgent.run)
            assert [each.attempt for each in attempts] == [1, 2]
            ended = await client.result(urgent.run, timeout_s=BOUND_S)
            assert (ended.status, ended.priority, ended.sender) == ("completed", "high", "customer-7")
            assert [run for run in behind if (await client.runs.load(run)).is_open]
            for run in [*others, *behind]:
                assert (await client.result(run, timeout_s=60.0)).status == "completed"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_was_on_its_way_to_an_instance_that_ends_is_done_by_others(
    server: Server, client: Client, how: signal.Signals
) -> None:
    """All levels and rows are asked for by both; one of the two ends in the middle of it, again and again."""
    with agent_processes(server, SLEEPER, 2) as processes:
        async with supervised(server):
            await agents_there(client, 2)
            runs = []
            for level in ("low", "normal", "high"):
                sent = (client.send("nap", {"s": 0.01}, priority=level) for _ in range(130))
                runs += [receipt.run for receipt in await asyncio.gather(*sent)]
            await until(lambda: client.runs.load(runs[0]))
            processes[0].send_signal(how)
            for run in runs:
                assert (await client.result(run, timeout_s=60.0)).status == "completed"

"""Schedules while leaders and servers are killed: every occurrence has one run, and none is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from bus import Client, Phase, Plan, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.rules.events import RunStarted
from tests.harness import ROOT, supervised, until

LEADER = Path(__file__).with_name("leader.py")
SHORT = Plan("short", phases=[Phase("go", wait_for="go", when="input.wait == true")])
# The server may ring late; it would have to be this late to leave one out.
EVERY_S = 2
INPUT = {"wait": False}


@contextmanager
def leaders() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to add to; killed at the end."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def leader(server: Server, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(LEADER), server.url, *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


async def runs(client: Client, name: str) -> list[str]:
    return [run for run in await client.ledger.names() if run.startswith(f"{name}-")]


async def at_least(client: Client, name: str, count: int) -> None:
    async def enough() -> bool:
        return len(await runs(client, name)) >= count

    await until(enough, 60)


async def assert_each_occurrence_was_started_once(client: Client, name: str) -> None:
    found = await runs(client, name)
    times = [datetime.strptime(run.rpartition("-")[2], "%Y%m%dt%H%M%S") for run in found]
    gaps = {later - earlier for earlier, later in pairwise(times)}
    assert gaps == {timedelta(seconds=EVERY_S)}
    for run in found:
        events = [event async for commit in client.ledger.commits(run) for event in commit.events]
        assert sum(isinstance(event, RunStarted) for event in events) == 1


async def test_a_leader_killed_again_and_again_leaves_no_occurrence_out_and_doubles_none(server: Server) -> None:
    async with connect(server.url) as client:
        with leaders() as processes:
            processes.append(leader(server, "first"))
            processes.append(leader(server, "second"))
            await client.schedule("tick", SHORT, INPUT, every_s=EVERY_S, overlap="allow")
            for number in range(3):
                await at_least(client, "tick", number + 1)
                processes[number].kill()
                processes.append(leader(server, f"another-{number}"))
            await at_least(client, "tick", 6)
        await assert_each_occurrence_was_started_once(client, "tick")


async def test_a_leader_killed_between_the_start_and_its_acknowledgement_started_it(server: Server) -> None:
    async with connect(server.url) as client:
        with leaders() as processes:
            await client.schedule("tick", SHORT, INPUT, every_s=EVERY_S, overlap="allow")
            for number in range(2):
                dying = leader(server, f"dying-{number}", "dies-before-acknowledging")
                processes.append(dying)
                await until(lambda dying=dying: dying.poll() is not None)
            started = await runs(client, "tick")
            assert len(started) >= 1
            processes.append(leader(server, "steady"))
            await at_least(client, "tick", len(started) + 2)
        await assert_each_occurrence_was_started_once(client, "tick")


async def test_what_was_due_while_the_server_was_down_is_started_afterwards(server: Server) -> None:
    at = (utc_now() + timedelta(seconds=4)).replace(microsecond=0)
    async with connect(server.url) as client:
        once = await client.schedule("once", SHORT, INPUT, at=at)
        daily = await client.schedule("daily", SHORT, INPUT, cron=f"{at.second} {at.minute} {at.hour} * * *")
        hourly = await client.schedule("later", SHORT, INPUT, every_s=3600)
    assert utc_now() < at, "this machine is too slow for the test"
    await server.kill()
    await until(lambda: utc_now() > at + timedelta(seconds=1))
    await server.start()
    async with supervised(server), connect(server.url) as client:
        await at_least(client, "daily", 1)
        await at_least(client, "once", 1)
        assert await runs(client, "once") == [once.schedule.run(at)]
        assert await runs(client, "daily") == [daily.schedule.run(at)]
        assert await runs(client, "later") == []
        assert hourly.next is not None and hourly.next > at


async def test_a_server_killed_under_a_leader_goes_on_ringing(server: Server) -> None:
    async with connect(server.url) as client, supervised(server, lease_s=1.5):
        await client.schedule("tick", SHORT, INPUT, every_s=1, overlap="allow")
        await at_least(client, "tick", 2)
        await server.restart()
        await at_least(client, "tick", 5)
        await until(lambda: _all_ended(client))


async def _all_ended(client: Client) -> bool:
    return not any([(await client.runs.load(run)).is_open for run in await runs(client, "tick")])

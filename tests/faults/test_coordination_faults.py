"""Locks and leads while their holders are killed and frozen, the line is lost, and the server is restarted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bus import Client, LeaseLost, connect
from bus.broker.server import Server
from bus.coordination.lease import LeaseAcquired, Place, standing
from tests.contract.relay import relay
from tests.harness import BOUND_S, ROOT, until

CONTENDER = Path(__file__).with_name("contender.py")


class Contender:
    """A process that contends, and what it says."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def says(self, word: str) -> Any:
        """The next thing of that kind."""
        assert self._process.stdout is not None
        async with asyncio.timeout(BOUND_S * 2):
            async for line in self._process.stdout:
                said = json.loads(line)
                if said[0] == word:
                    return said[1]
        raise AssertionError(f"it ended before it said {word!r}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def contender(server: Server, name: str, mode: str, ttl_s: int = 1) -> AsyncIterator[Contender]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CONTENDER), server.url, name, mode, str(ttl_s)]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield Contender(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def notes(client: Client) -> list[tuple[str, int]]:
    """Who wrote with which token, in the order of the log."""
    found = [json.loads(bytes(record.envelope().data)) async for record in client.log.read("bus.topic.shared")]
    return [(name, token) for name, token in found]


async def acquired(client: Client, place: Place) -> dict[int, str]:
    """Every token that was ever given, and to which lease."""
    found: dict[int, str] = {}
    async for record in client.log.read(client.subjects.lease(place.path)):
        event = standing(record.envelope(), record.position).event
        if isinstance(event, LeaseAcquired):
            found[record.position] = event.lease
    return found


async def test_a_killed_holder_leaves_the_lock_to_who_waits(server: Server) -> None:
    async with contender(server, "first", "hold") as first, contender(server, "second", "wait") as second:
        # Whichever comes first holds it.
        tokens = {asyncio.create_task(each.says("held")): each for each in (first, second)}
        done, waiting = await asyncio.wait(tokens, return_when=asyncio.FIRST_COMPLETED)
        holder = done.pop()
        tokens[holder].signal(signal.SIGKILL)
        assert await waiting.pop() > holder.result()


async def test_a_frozen_holder_that_wakes_finds_out_and_its_old_token_is_refused(server: Server) -> None:
    async with connect(server.url) as client, contender(server, "frozen", "hold") as frozen:
        token = await frozen.says("held")
        frozen.signal(signal.SIGSTOP)
        async with client.lock("shared", timeout_s=BOUND_S, ttl_s=5) as lease:
            assert lease.token > token
            frozen.signal(signal.SIGCONT)
            assert await frozen.says("lost") == token
            assert await frozen.says("refused") == token
            lease.check()
        assert await notes(client) == []


async def test_a_killed_leader_is_followed_by_another(server: Server) -> None:
    async with contender(server, "first", "lead") as first:
        token = await first.says("held")
        async with contender(server, "second", "lead") as second:
            first.signal(signal.SIGKILL)
            assert await second.says("held") > token


async def test_no_two_holders_ever_have_one_token_and_no_old_one_writes_after_a_newer(server: Server) -> None:
    async with connect(server.url) as client, AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(contender(server, f"worker-{each}", "work")) for each in range(3)]
        for _ in range(2):
            for worker in workers:
                await worker.says("wrote")
            workers[0].signal(signal.SIGSTOP)
            for _ in range(5):
                await workers[1].says("wrote")
            workers[0].signal(signal.SIGCONT)
        workers[2].signal(signal.SIGKILL)
        await server.restart()
        for _ in range(5):
            await workers[0].says("wrote")
            await workers[1].says("wrote")
        written = await notes(client)
        given = await acquired(client, Place("lock", "shared"))
    tokens = [token for _, token in written]
    assert tokens == sorted(set(tokens)), "each is used once, in the order in which they were given"
    assert set(tokens) <= set(given)
    assert len(set(given.values())) == len(given)
    assert {name for name, _ in written} == {"worker-0", "worker-1", "worker-2"}


async def test_a_lock_outlives_a_server_that_is_restarted_within_its_time(server: Server) -> None:
    async with connect(server.url) as client, client.lock("shared", ttl_s=30) as lease:
        await server.kill()
        await server.start()
        await until(lambda: client.connection.is_connected)
        revision = lease.revision
        await client.leases.renew(lease)
        assert lease.revision > revision
        assert [each.token for each in await client.holdings()] == [lease.token]


async def test_without_a_server_a_lock_ends_by_the_holder_s_own_clock(server: Server) -> None:
    async with connect(server.url) as client:
        with pytest.raises(LeaseLost, match="not renewed"):
            async with client.lock("shared", ttl_s=1):
                await server.kill()
                await asyncio.sleep(BOUND_S)
        await server.start()
        async with client.lock("shared", timeout_s=BOUND_S):
            pass


async def test_a_lost_answer_loses_no_lock_and_leaves_none_behind(server: Server) -> None:
    address = urlsplit(server.url)
    assert address.port is not None
    with relay(address.port) as line:
        url = server.url.replace(f":{address.port}", f":{line.port}")
        async with connect(url) as client:
            # The answers to what goes to the bucket, and to the log.
            for stream in (b'"KV_BUS_LEASES"', b'"stream":"BUS"', b'"KV_BUS_LEASES"'):
                line.lose_answer(stream)
                async with client.lock("shared", timeout_s=BOUND_S, ttl_s=5) as lease:
                    lease.check()
            assert line.losses >= 2
            assert await client.holdings() == []

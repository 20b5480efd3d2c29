"""Routing: who is given work when several could take it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from bus import Agent, Client, Context, connect
from bus.server import Server
from bus.worker import Worker, new_instance
from tests.harness import BOUND_S, serving, until


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def pricer(name: str, done: Counter[str], *, standby: bool = False, gate: asyncio.Event | None = None) -> Agent:
    agent = Agent(name, standby=standby)

    @agent.capability("price")
    async def price(number: int) -> str:
        done[name] += 1
        if gate is not None:
            await gate.wait()
        return name

    return agent


async def finished(client: Client, runs: list[str]) -> None:
    for run in runs:
        assert (await client.result(run, timeout_s=BOUND_S)).status == "completed"


async def test_instances_that_are_free_are_served_in_turn(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()
    async with serving(server, pricer("one", done), pricer("two", done)):
        for number in range(10):
            await finished(client, [(await client.send("price", number)).run])
    assert done == {"one": 5, "two": 5}


async def test_a_standby_is_given_what_nobody_else_asks_for(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()
    gate = asyncio.Event()
    gate.set()
    async with serving(server, pricer("spare", done, standby=True), pricer("main", done, gate=gate)):
        for number in range(5):
            await finished(client, [(await client.send("price", number)).run])
        assert done == {"main": 5}
        gate.clear()
        runs = [(await client.send("price", number)).run for number in range(4)]
        await until(lambda: done["spare"] == 3)
        gate.set()
        await finished(client, runs)
    assert done == {"main": 6, "spare": 3}


async def test_a_standby_is_asked_when_nobody_else_is_there(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()
    async with serving(server, pricer("spare", done, standby=True)):
        assert [await client.ask("price", 1, str, fast=fast) for fast in (True, False)] == ["spare", "spare"]
        async with serving(server, pricer("main", done)):
            assert [await client.ask("price", 1, str, fast=fast) for fast in (True, False)] == ["main", "main"]
            assert [each.standby for each in await client.agents()] == [False, True]


async def test_a_busy_instance_leaves_fast_questions_to_a_standby(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()
    gate = asyncio.Event()
    async with serving(server, pricer("spare", done, standby=True), pricer("main", done, gate=gate)):
        holding = asyncio.create_task(client.ask("price", 0, str, fast=True))
        await until(lambda: done["main"])
        assert await client.ask("price", 1, str, fast=True) == "spare"
        gate.set()
        assert await holding == "main"


async def test_an_instance_that_is_not_well_lets_others_go_first(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()
    async with serving(server, pricer("sick", done), pricer("well", done)):
        await client.open_breaker("openai", by="ann", reason="it is down")
        # Only the one that uses this service is concerned.
        async with connect(server.url) as own:
            agent = Agent("fragile")

            @agent.capability("price")
            async def price(_: int) -> str:
                done["fragile"] += 1
                return "fragile"

            await own.breaker("openai").known()
            stop = asyncio.Event()
            worker = Worker(own, agent, new_instance("fragile"))
            running = asyncio.create_task(worker.run(stop))
            await until(lambda: _health(client, "fragile", "degraded"))
            for number in range(6):
                await finished(client, [(await client.send("price", number)).run])
            assert done == {"sick": 3, "well": 3}
            (there,) = [each for each in await client.agents() if each.agent == "fragile"]
            assert "openai" in there.note
            await client.close_breaker("openai", by="ann")
            await until(lambda: _health(client, "fragile", "healthy"))
            for number in range(6):
                await finished(client, [(await client.send("price", number)).run])
            assert done["fragile"] == 2
            stop.set()
            await running


async def test_an_instance_near_its_memory_limit_takes_nothing(server: Server, client: Client) -> None:
    agent = Agent("large")
    done: Counter[str] = Counter()

    @agent.capability("price")
    async def price(_: int, context: Context) -> str:
        done[context.agent] += 1
        return context.agent

    async with connect(server.url, memory_limit_mb=1) as own:
        stop = asyncio.Event()
        worker = Worker(own, agent, new_instance("large"))
        running = asyncio.create_task(worker.run(stop))
        await until(lambda: _health(client, "large", "unwell"))
        receipt = await client.send("price", 1)
        assert not receipt.unserved
        async with serving(server, pricer("small", done)):
            await finished(client, [receipt.run])
        assert done == {"small": 1}
        stop.set()
        await running


async def _health(client: Client, agent: str, level: str) -> bool:
    return any(each.agent == agent and each.health == level for each in await client.agents())

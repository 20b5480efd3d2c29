"""Every verb goes on when the server comes back: who calls it waits, and is not told of what can be tried again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count

from bus import Agent, Approval, Client, Context, Phase, Plan, Quota, connect
from bus.broker.server import Server
from bus.errors import Unavailable
from tests.harness import BOUND_S, serving, supervised

OUTAGES = 4
ONE = Plan("one", phases=[Phase("a", "echo")])
GATED = Plan("gated", phases=[Phase("gate", approval=Approval())])

Verb = Callable[[Client, str], Awaitable[object]]


def helpful() -> Agent:
    agent = Agent("helpful")

    @agent.capability("echo", concurrency=8)
    async def echo(value: object) -> object:
        return value

    @agent.capability("count", concurrency=8)
    async def count_up(number: int, context: Context) -> int:
        for each in range(number):
            await context.emit(each)
        return number

    @agent.capability("everywhere", broadcast=True)
    async def everywhere(_: object) -> None: ...

    return agent


async def run_to_its_end(client: Client, name: str) -> None:
    state = await client.result((await client.start(ONE, run=name)).run, timeout_s=BOUND_S)
    assert state.status == "completed"


async def steer(client: Client, name: str) -> None:
    await client.start(GATED, run=name)
    await client.pause(name, by="me")
    await client.resume(name, by="me")
    await client.approve(name, "gate", by="me")
    assert (await client.fork(name)).status == "completed"


async def stream(client: Client, _: str) -> None:
    assert [each.value async for each in client.stream("count", 3, timeout_s=BOUND_S)] == [0, 1, 2]


async def lock(client: Client, name: str) -> None:
    async with client.lock(name, timeout_s=BOUND_S):
        await client.holdings()


async def schedule(client: Client, name: str) -> None:
    await client.schedule(name, ONE, every_s=3600)
    assert name in [each.schedule.name for each in await client.schedules()]
    await client.unschedule(name)


async def route(client: Client, name: str) -> None:
    await client.set_route(name, {"1.*": 1.0}, by="me")
    await client.remove_route(name, by="me")


async def operate(client: Client, name: str) -> None:
    await client.quarantine_agents(name, by="me")
    await client.release_agents(name, by="me")
    await client.open_breaker(name, by="me")
    await client.close_breaker(name, by="me")


async def look(client: Client, _: str) -> None:
    assert await client.agents()
    await client.breakers()
    await client.limits()
    await client.routes()
    async with aclosing(client.events(subjects=["bus.topic.>", "bus.run.>"])) as told:
        positions = [each.position async for each in told]
    assert positions == sorted(positions)


VERBS: dict[str, Verb] = {
    "ask": lambda client, _: client.ask("echo", 1, timeout_s=BOUND_S),
    "send": lambda client, name: client.send("echo", 1, id=name),
    "tell": lambda client, _: client.tell("helpful", 1),
    "publish": lambda client, _: client.publish("news", 1),
    "broadcast": lambda client, _: client.broadcast("everywhere", 1),
    "limit": lambda client, _: client.limit("calls", Quota(calls_per_s=500)).take(timeout_s=BOUND_S),
    "run": run_to_its_end,
    "steer": steer,
    "stream": stream,
    "lock": lock,
    "schedule": schedule,
    "route": route,
    "operate": operate,
    "look": look,
}


@asynccontextmanager
async def outages(server: Server) -> AsyncIterator[asyncio.Event]:
    """Kills and starts the server again and again; says when it has for the last time."""
    over = asyncio.Event()

    async def kill() -> None:
        for _ in range(OUTAGES):
            await asyncio.sleep(0.5)
            await server.kill()
            await asyncio.sleep(0.2)
            await server.start()
        over.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill())
        yield over


async def test_who_calls_a_verb_while_the_server_is_killed_again_and_again_waits_for_it(server: Server) -> None:
    done: Counter[str] = Counter()
    names = count()

    async def again(client: Client, name: str, verb: Verb, over: asyncio.Event) -> None:
        while not over.is_set():
            await verb(client, f"{name}-{next(names)}")
            done[name] += 1

    async with (
        supervised(server),
        serving(server, helpful()),
        connect(server.url) as client,
        outages(server) as over,
        asyncio.timeout(3 * BOUND_S),
        asyncio.TaskGroup() as tasks,
    ):
        for name, verb in VERBS.items():
            tasks.create_task(again(client, name, verb, over))
    assert done.keys() == VERBS.keys()


async def test_a_fast_question_is_told_of_a_lost_line_once_and_never_that_nobody_is_there(server: Server) -> None:
    """It is asked at most once; who answers may have his line back later than who asks."""
    lost = answered = 0
    async with serving(server, helpful()), connect(server.url) as client, outages(server) as over:
        while not over.is_set():
            try:
                await client.ask("echo", 1, fast=True, timeout_s=BOUND_S)
                answered += 1
            except Unavailable:
                lost += 1
    assert lost <= OUTAGES < answered


async def test_who_waits_for_a_server_that_is_away_waits_together_and_is_told_when_the_client_is_closed(
    server: Server,
) -> None:
    """One after the other they would wait for as long as each may."""
    async with asyncio.timeout(BOUND_S):
        async with connect(server.url, append_timeout_s=1) as client:
            await server.kill()
            sending = [asyncio.create_task(client.send("nobody", number)) for number in range(40)]
            await asyncio.sleep(0.5)
            early = await asyncio.gather(*sending[:20], return_exceptions=True)
            late = [asyncio.create_task(client.send("nobody", number)) for number in range(20)]
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*sending[20:], *late, return_exceptions=True)
    assert {type(each) for each in [*early, *outcomes]} == {Unavailable}

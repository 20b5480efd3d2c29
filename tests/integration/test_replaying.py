"""Recorded work, done again in a fork: in order, as it was given then, without touching the log it is from."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from bus import Agent, Client, Context, Phase, Plan, Reject, Selection, connect, ref, serving
from bus.archives.convoy import last_position
from bus.broker.server import Server
from bus.history.happening import happenings
from bus.replay.fork import NAMESPACE, forked
from bus.replay.replaying import Replayed, paced, replay
from bus.rules.events import PhaseProgressed
from tests.harness import BOUND_S, supervised

PLAN = Plan(
    "order",
    phases=[
        Phase("price", "price", each=ref("input.items"), width=1),
        Phase("sum", "sum", input={"prices": ref("price"), "tax": ref("input.tax")}),
    ],
)


def shop(factor: int = 10) -> Agent:
    agent = Agent("shop")

    @agent.capability("price")
    async def price(item: int, context: Context) -> int:
        if item == 3 and context.attempt == 1:
            raise ConnectionError("the line is down")
        if item < 0:
            raise Reject("below nothing")
        return item * factor

    @agent.capability("sum")
    async def total(query: dict[str, Any]) -> int:
        return sum(query["prices"]) + int(query["tax"])

    return agent


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def history(server: Server, client: Client) -> None:
    """A run that completes after a second try, and one that fails."""
    async with supervised(server), serving(client, shop()):
        for run, items in {"good": [1, 2, 3], "bad": [4, -1]}.items():
            await client.start(PLAN, {"items": items, "tax": 7}, run=run)
            await client.result(run, timeout_s=BOUND_S)


async def replayed(client: Client, fork: Client, agent: Agent, **wanted: Any) -> Sequence[Replayed]:
    picked = {name: wanted.pop(name) for name in ("capabilities", "speed") if name in wanted}
    async with asyncio.timeout(BOUND_S), aclosing(replay(client, fork, agent, Selection(**wanted), **picked)) as found:
        return [each async for each in found]


async def test_every_attempt_is_done_again_in_order_with_what_it_was_given(server: Server, client: Client) -> None:
    await history(server, client)
    async with forked() as fork:
        same = await replayed(client, fork, shop())
        assert [each.verdict for each in same] == ["same"] * 7
        assert all((a.position, a.index) < (b.position, b.index) for a, b in pairwise(same))
        assert [(each.run, each.phase, each.item, each.attempt) for each in same if each.item == 2] == [
            ("good", "price", 2, 1),
            ("good", "price", 2, 2),
        ]
        failed = [each for each in same if each.now.problem]
        assert [each.now.problem.title for each in failed if each.now.problem] == ["ConnectionError", "below nothing"]
    async with forked() as fork:
        other = await replayed(client, fork, shop(11), runs=["good"])
    # What `sum` was given then: the prices of then, whatever came of them now.
    assert [(each.capability, each.verdict) for each in other] == [
        *[("price", verdict) for verdict in ("differs", "differs", "same", "differs")],
        ("sum", "same"),
    ]


async def test_what_is_replayed_can_be_chosen(server: Server, client: Client) -> None:
    await history(server, client)
    async with forked() as fork:
        assert [each.run for each in await replayed(client, fork, shop(), capabilities=["sum"])] == ["good"]
        chosen = await replayed(client, fork, shop(), phase="price:1", limit=2)
        assert [(each.run, each.item, each.verdict) for each in chosen] == [("good", 1, "same"), ("bad", 1, "same")]
        assert await replayed(client, fork, Agent("nobody")) == []


async def test_a_handler_that_fails_now_is_told_from_one_that_never_answered(client: Client) -> None:
    agent, entered, released = Agent("slow"), asyncio.Event(), asyncio.Event()

    @agent.capability("slow")
    async def slow(answer: int) -> int:
        if answer == 2:
            entered.set()
            await released.wait()
        return answer

    broken = Agent("slow")

    @broken.capability("slow")
    def never(_: int) -> int:
        raise ValueError("broken by the change")

    async with serving(client, agent):
        assert await client.ask("slow", 1, timeout_s=BOUND_S) == 1
        left = await client.send("slow", 2)
        await entered.wait()
        await client.cancel(left.run, by="test")
        released.set()
    async with forked() as fork:
        found = await replayed(client, fork, broken)
    assert [(each.verdict, each.recorded is None) for each in found] == [("failed", False), ("new", True)]
    assert found[0].now.problem is not None
    assert found[0].now.problem.detail == "broken by the change"


async def test_production_is_read_and_nothing_else_whatever_a_handler_does(server: Server, client: Client) -> None:
    await history(server, client)
    chatty = Agent("shop")
    seen: list[Context] = []

    @chatty.capability("price")
    async def price(item: int, context: Context) -> int:
        seen.append(context)
        await context.progress(0.5, "again")
        async with connect() as own:
            await own.send("elsewhere", {"item": item})
        return item

    async def work() -> bytes:
        answer = await client.connection.request("$JS.API.STREAM.INFO.BUS_WORK", timeout_s=5)
        return answer.data.partition(b'"state"')[2].partition(b'"ts"')[0]

    before = await last_position(client), await work()
    url = os.environ.get("NATS_URL")
    async with forked() as fork:
        await replayed(client, fork, chatty, runs=["good"])
        reported = [each async for each in fork.events(runs=["good"], types=["phase.progressed"])]
        sent = [each async for each in fork.events(types=["run.started"])]
        assert {each.subject.partition(".")[0] for each in (*reported, *sent)} == {NAMESPACE}
        assert [each.event.note for each in reported if isinstance(each.event, PhaseProgressed)] == ["again"] * 4
        assert len([each for each in sent if each.run != "good"]) == 4
    assert (await last_position(client), await work()) == before
    assert os.environ.get("NATS_URL") == url
    # It met what its predecessor met.
    assert [(each.run, each.item, each.attempt, each.effect_key) for each in seen][-2:] == [
        ("good", 2, 1, "good/price:2"),
        ("good", 2, 2, "good/price:2"),
    ]
    assert all(each.deadline_at is not None for each in seen)


async def test_at_the_original_speed_nothing_comes_earlier_than_it_did() -> None:
    began = datetime.fromisoformat("2026-01-01T00:00:00Z")
    times = [0.0, 0.05, 0.2]

    async def recorded() -> AsyncIterator[Any]:
        for number, second in enumerate(times, 1):
            instant = datetime.fromtimestamp(began.timestamp() + second, began.tzinfo)
            [each] = happenings(number, "bus.topic.t", instant, b"")
            yield each

    loop = asyncio.get_running_loop()
    start = loop.time()
    arrived = [loop.time() - start async for _ in paced(recorded(), 1.0)]  # type: ignore[arg-type]
    assert all(came >= due - 0.001 for came, due in zip(arrived, times, strict=True))


async def test_a_run_with_bytes_of_a_vandal_in_it_is_replayed_without_them(server: Server, client: Client) -> None:
    await history(server, client)
    await client.connection.request("bus.run.good", b"\xff", timeout_s=5)
    async with forked() as fork:
        assert [each.verdict for each in await replayed(client, fork, shop(), runs=["good"])] == ["same"] * 5

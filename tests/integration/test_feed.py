"""What the client finds in a log that agents and vandals have written to: selected, backwards, live."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from bus import Agent, Client, Happening, Phase, Plan, Reject, Selection, SettingsError, connect, ref, serving
from bus.broker.server import Server
from bus.errors import NotFound
from tests.harness import BOUND_S

PLAN = Plan(
    "order",
    phases=[Phase("price", "price", each=ref("input.items"), width=2), Phase("sum", "sum", input=ref("price"))],
)


def shop() -> Agent:
    agent = Agent("shop")

    @agent.capability("price", concurrency=2)
    async def price(item: int) -> int:
        if item < 0:
            raise Reject("below nothing")
        return item * 10

    @agent.capability("sum")
    async def total(prices: list[int]) -> int:
        return sum(prices)

    return agent


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def history(client: Client, *runs: str) -> list[datetime]:
    """Some runs, one of which fails, with something from a vandal between them; and the times in between."""
    times = []
    async with serving(client, shop()):
        for run in runs:
            times.append(datetime.now(UTC))
            await client.start(PLAN, {"items": [1, 2, -1 if run == runs[-1] else 3]}, run=run)
            await client.result(run, timeout_s=BOUND_S)
            await client.connection.request(f"bus.run.{run}", b"\xff not ours", timeout_s=5)
    return times


async def all_of(client: Client, selection: Selection | None = None) -> list[Happening]:
    async with asyncio.timeout(BOUND_S), aclosing(client.events(selection)) as found:
        return [each async for each in found]


def place(each: Happening) -> tuple[int, int]:
    return each.position, each.index


async def test_everything_comes_in_order_and_what_can_not_be_read_is_shown(client: Client) -> None:
    await history(client, "one", "two")
    everything = await all_of(client)
    assert all(place(earlier) < place(later) for earlier, later in pairwise(everything))
    assert {each.position for each in everything} == set(range(1, everything[-1].position + 1))
    broken = [each for each in everything if each.type == "malformed"]
    assert [(each.subject, each.run) for each in broken] == [("bus.run.one", "one"), ("bus.run.two", "two")]
    assert all("envelope" in each.problem for each in broken)
    assert {"agent.registered.v1", "run.completed.v1", "run.failed.v1", "dead.letter.v1"} <= {
        each.type for each in everything
    }


async def test_a_subject_that_is_not_utf8_is_shown_like_any_other(client: Client) -> None:
    client.connection._client.send(b"PUB bus.topic.\xff 2\r\n{}\r\n")
    await client.connection.flush(5)
    [each] = await all_of(client)
    assert (each.subject, each.type) == ("bus.topic.\udcff", "malformed")


async def test_any_selection_of_the_log_is_what_fits_of_all_that_is_in_it(client: Client) -> None:
    times = await history(client, "one", "two", "three")
    everything = await all_of(client)
    last = everything[-1].position
    dice = random.Random(7)
    choices: dict[str, list[object]] = {
        "runs": [(), (), ("one",), ("two", "three")],
        "subjects": [(), (), ("bus.run.*",), ("bus.dead.>", "bus.agent.>")],
        "types": [(), (), ("phase.*",), ("phase.failed", "dead.letter")],
        "phase": [None, None, "price", "price:1"],
        "agent": [None, None, "shop"],
        "correlation": [None, None, "two"],
        "after": [0, 0, last // 2],
        "upto": [None, None, last - 3, 0],
        "since": [None, None, *times],
        "until": [None, None, *times],
        "limit": [None, 1, 7],
        "backwards": [False, True],
    }
    found_some = 0
    for _ in range(150):
        selection = Selection(**{name: dice.choice(values) for name, values in choices.items()})  # type: ignore[arg-type]
        fitting = [each for each in everything if selection.fits(each)]
        if selection.backwards:
            fitting.reverse()
        found = await all_of(client, selection)
        assert [*map(place, found)] == [*map(place, fitting[: selection.limit])], selection
        found_some += bool(found)
    assert found_some > 20


async def test_following_goes_on_across_a_restart_of_the_server_without_gap_or_duplicate(
    server: Server, client: Client
) -> None:
    seen: list[Happening] = []

    async def follow() -> None:
        wanted = Selection(types=["run.started", "run.cancelled"])
        async with aclosing(client.events(wanted, follow=True)) as found:
            async for each in found:
                seen.append(each)
                if each.run == "r19" and each.type == "run.cancelled.v1":
                    return

    async def write() -> None:
        for number in range(20):
            await client.start(PLAN, {"items": []}, run=f"r{number}")
            if number in {5, 12}:
                await server.restart()
            await client.cancel(f"r{number}", by="test")

    async with asyncio.timeout(BOUND_S * 2):
        await asyncio.gather(follow(), write())
    assert [(each.run, each.type) for each in seen] == [
        (f"r{number}", kind) for number in range(20) for kind in ("run.started.v1", "run.cancelled.v1")
    ]
    assert all(each.stored_at.tzinfo is not None for each in seen)


async def test_what_is_followed_may_not_have_an_end(client: Client) -> None:
    for selection in (Selection(upto=3), Selection(backwards=True), Selection(until=datetime.now(UTC))):
        with pytest.raises(SettingsError, match="has no end"):
            await anext(client.events(selection, follow=True))


async def test_leaving_early_leaves_nothing_behind(client: Client) -> None:
    await history(client, "one")
    tasks = asyncio.all_tasks()
    async with aclosing(client.events(follow=True, types=["run.*"])) as found:
        assert (await anext(found)).type == "run.started.v1"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_watching_a_run_passes_over_what_is_none_of_it(client: Client) -> None:
    await history(client, "one")
    watched = [each async for each in client.watch("one")]
    assert [each.event for each in watched] == [
        each.event for each in await all_of(client, Selection(runs=["one"])) if each.event
    ]
    with pytest.raises(NotFound):
        await anext(client.watch("nothing"))

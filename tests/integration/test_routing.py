"""Routing: who is given work when several could take it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from bus import Agent, Client, Context, Reject, Retry, connect
from bus.broker.server import Server
from bus.errors import NoLiveAgent, NotFound, Refused, SettingsError
from bus.runs.lane import RESUMED, beginning, lane_of, token_of
from bus.worker.worker import Worker, new_instance
from tests.harness import BOUND_S, serving, supervised, until


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


def booker(name: str, order: list[tuple[str, int]], on_dead: str = "skip", concurrency: int = 4) -> Agent:
    agent = Agent(name)
    failed: set[tuple[str, int]] = set()

    @agent.capability("book", ordered=True, on_dead=on_dead, concurrency=concurrency)  # type: ignore[arg-type]
    async def book(order_of: tuple[Any, ...], context: Context) -> str:
        key, number, *_ = order_of
        if number == 3 and context.attempt == 1 and key != "x":
            raise Retry(0.1)
        if number < 0 and (key, number) not in failed:
            failed.add((key, number))
            raise Reject("no")
        order.append((key, number))
        return context.instance

    return agent


async def test_work_of_a_key_is_done_in_order_of_sending_also_across_retries(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    async with supervised(server), serving(server, booker("one", order), booker("two", order)):
        runs = []
        for number in range(8):
            runs += [(await client.send("book", (key, number), key=key)).run for key in "abc"]
        await finished(client, runs)
    for key in "abc":
        assert [number for each, number in order if each == key] == [*range(8)]


async def test_work_of_a_key_stays_with_one_instance_while_that_has_room(server: Server, client: Client) -> None:
    async def is_shared_out_and_stays() -> bool:
        where: dict[str, set[str]] = {}
        for number in range(4):
            for key in map(str, range(8)):
                receipt = await client.send("book", (key, number), key=key)
                state = await client.result(receipt.run, timeout_s=BOUND_S)
                where.setdefault(key, set()).add(client.output(state, "work", str))
        return all(len(instances) == 1 for instances in where.values()) and len(set.union(*where.values())) == 2

    async with serving(server, booker("one", []), booker("two", [])):
        # Shortly after they have come, or while the machine is so busy that one has no room, keys move.
        await until(is_shared_out_and_stays)


async def test_a_dead_one_lets_the_next_of_its_key_go_on(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    async with serving(server, booker("one", order)):
        dead = await client.send("book", ("x", -1), key="x")
        await finished(client, [(await client.send("book", ("x", 1), key="x")).run])
        assert (await client.result(dead.run, timeout_s=BOUND_S)).status == "failed"
    assert order == [("x", 1)]


async def test_a_parked_key_waits_until_its_letter_is_redriven_or_discarded(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    async with serving(server, booker("one", order, "park")):
        await client.send("book", ("x", -1), key="x")
        later = [(await client.send("book", ("x", number), key="x")).run for number in (1, -2, 2)]
        await until(lambda: _letters(client, 1))
        await asyncio.sleep(0.5)
        assert not order
        (letter,) = [each async for each in client.dead_letters()]
        await client.redrive_letter(letter.number, by="ann")
        await until(lambda: _letters(client, 2))
        await asyncio.sleep(0.3)
        assert order == [("x", -1), ("x", 1)]
        *_, letter = [each async for each in client.dead_letters()]
        await client.discard_letter(letter.number, by="ann")
        await finished(client, later[2:])
    assert order == [("x", -1), ("x", 1), ("x", 2)]


async def test_work_with_a_key_waits_for_somebody_who_serves_in_order(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    agent = Agent("plain")
    agent.capability("book")(lambda value: order.append(("plain", 0)))
    async with serving(server, agent):
        receipt = await client.send("book", ("a", 1), key="a")
        assert list(receipt.unserved) == ["book"]
        async with serving(server, booker("one", order)):
            await finished(client, [receipt.run])
            assert not (await client.send("book", ("a", 2), key="a")).unserved
    assert order[0] == ("a", 1)


async def test_work_with_a_key_and_a_time_takes_its_place_when_that_has_come(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    async with supervised(server), serving(server, booker("one", order)):
        late = [(await client.send("book", ("a", 9), key="a", delay_s=0.5)).run]
        await finished(client, [(await client.send("book", ("a", number), key="a")).run for number in (1, 2)])
        assert order == [("a", 1), ("a", 2)]
        held = await client.send("book", ("a", 3), key="a")
        await finished(client, [held.run, *late])
    assert order == [("a", 1), ("a", 2), ("a", 3), ("a", 9)]


async def test_a_time_that_came_while_nobody_led_still_puts_work_in_line(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    receipt = await client.send("book", ("a", 1), key="a", delay_s=0.2)
    await asyncio.sleep(0.3)
    async with supervised(server), serving(server, booker("one", order)):
        await finished(client, [receipt.run])
    assert order == [("a", 1)]


async def test_a_place_without_its_run_is_enough_for_the_work(server: Server, client: Client) -> None:
    """Who sends stores the place first, and may die before the run is stored."""
    order: list[tuple[str, int]] = []
    runs = []
    for number, size in ((1, 1), (2, 1_500_000)):
        runs.append((await client.send("book", ("a", number), key="a")).run)
        place = await client.log.last(client.subjects.line("book", lane_of("a")))
        assert place is not None
        message = place.envelope()
        # Also one that no message can hold.
        given = b'["a",%d]' % number
        assert given in bytes(message.data)
        data = bytes(message.data).replace(given, b'["a",%d,"%b"]' % (number, b"x" * size))
        lonely = msgspec.structs.replace(message, id=f"place-{number}", runid=f"task-{number}", data=msgspec.Raw(data))
        await client.log.append(place.subject, lonely)
    with pytest.raises(NotFound):
        await client.runs.load("task-1")
    async with serving(server, booker("one", order)):
        await until(lambda: len(order) == 4)
        await finished(client, ["task-1", "task-2", *runs])
    assert order == [("a", 1), ("a", 1), ("a", 2), ("a", 2)]


async def test_what_is_no_place_holds_no_lane(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    await client.send("book", ("a", 1), key="a")
    line = client.subjects.line("book", lane_of("a"))
    place = await client.log.last(line)
    assert place is not None
    message = place.envelope()
    hostile = [
        msgspec.structs.replace(message, id="place-1", runid="task-1", data=msgspec.Raw(data))
        for data in (b"null", b'{"events":[{"type":"run.completed.v1"}]}', b'{"events":[]}', b'{"key":7}')
    ]
    hostile += [msgspec.structs.replace(message, type=type, data=msgspec.Raw(b"7")) for type in (RESUMED, "other.v1")]
    for number, each in enumerate(hostile):
        await client.log.append(line, msgspec.structs.replace(each, id=f"place-{number}"))
    client.connection.publish(line, b"\xff")
    client.connection.publish(client.subjects.parked("book", token_of("a")), b"\xff")
    async with serving(server, booker("one", order)):
        await finished(client, [(await client.send("book", ("a", 2), key="a")).run])
    assert order == [("a", 1), ("a", 2)]


async def test_who_comes_to_store_a_run_that_its_place_has_begun_stores_it_once(client: Client) -> None:
    receipt = await client.send("book", ("a", 1), key="a")
    place = await client.log.last(client.subjects.line("book", lane_of("a")))
    first = await client.log.last(client.subjects.run(receipt.run))
    assert place is not None and first is not None and place.position < first.position
    assert beginning(place.envelope()) == first.envelope()
    await client.ledger.begin(place.envelope())
    # The sender's own append of the same commit, after somebody else's.
    assert await client.log.append(first.subject, first.envelope(), expected=0) == first.position
    assert [record.position async for record in client.log.read(first.subject)] == [first.position]


async def test_who_asks_with_a_key_waits_for_his_turn(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    with pytest.raises(NoLiveAgent):
        await client.ask("book", ("a", 1), key="a")
    with pytest.raises(SettingsError, match="fast"):
        await client.ask("book", ("a", 1), key="a", fast=True)
    async with supervised(server), serving(server, booker("one", order), booker("two", order)):
        # The first is tried twice; meanwhile the others wait.
        asks = [client.ask("book", ("a", number), str, key="a") for number in (3, 4)]
        first = asyncio.create_task(asks[0])
        await until(client.ledger.names)
        assert set(await asyncio.gather(first, asks[1])) <= {each.instance for each in await client.agents()}
    assert order == [("a", 3), ("a", 4)]


async def test_mail_with_a_key_is_heard_in_order(server: Server, client: Client) -> None:
    heard: list[int] = []
    agent = Agent("clerk")

    @agent.mail(ordered=True, concurrency=4)
    async def hear(number: int, context: Context) -> None:
        if number == 1 and context.attempt == 1:
            raise Retry(0.1)
        heard.append(number)

    async with supervised(server), serving(server, agent):
        receipts = [await client.tell("clerk", number, key="a") for number in range(4)]
        assert not any(receipt.unserved for receipt in receipts)
        await finished(client, [receipt.run for receipt in receipts])
    assert heard == [0, 1, 2, 3]


async def test_a_key_and_a_version_do_not_go_together(client: Client) -> None:
    with pytest.raises(SettingsError, match="key or a version"):
        await client.send("book", ("a", 1), key="a", version="2")


async def _letters(client: Client, count: int) -> bool:
    return len([each async for each in client.dead_letters()]) == count


async def test_a_broadcast_reaches_every_instance_there_is_once(server: Server, client: Client) -> None:
    heard: list[tuple[str, int]] = []

    def reloader(name: str) -> Agent:
        agent = Agent(name)

        @agent.capability("cache.reload", broadcast=True)
        async def reload(number: int, context: Context) -> str:
            heard.append((name, number))
            if context.attempt == 1:
                raise Retry(0)
            return context.instance

        return agent

    async with supervised(server), serving(server, reloader("one"), reloader("two")):
        receipts = await client.broadcast("cache.reload", 1)
        assert len(receipts) == 2 and not any(each.unserved for each in receipts.values())
        async with serving(server, reloader("late")):
            for instance, receipt in receipts.items():
                state = await client.result(receipt.run, timeout_s=BOUND_S)
                # Also its second attempt was its own.
                assert client.output(state, "work", str) == instance
            assert await client.ask("cache.reload", 2, str)
    assert sorted(each for each in heard if each[1] == 1) == [("one", 1)] * 2 + [("two", 1)] * 2


async def test_a_broadcast_to_nobody_says_so(server: Server, client: Client) -> None:
    async with serving(server, pricer("one", Counter())):
        with pytest.raises(NoLiveAgent):
            await client.broadcast("price", 1)


async def test_what_is_sent_twice_under_an_id_stands_in_line_once(server: Server, client: Client) -> None:
    order: list[tuple[str, int]] = []
    async with connect(server.url) as other:
        first = await client.send("book", ("a", 1), key="a", id="order 7")
        for sender in (client, other):
            again = await sender.send("book", ("a", 1), key="a", id="order 7")
            assert (again.run, again.duplicate) == (first.run, True)
        with pytest.raises(Refused):
            await client.send("book", ("a", 1), key="b", id="order 7")
    async with serving(server, booker("one", order)):
        await finished(client, [first.run, (await client.send("book", ("a", 2), key="a")).run])
    assert order == [("a", 1), ("a", 2)]


async def test_work_for_a_version_is_done_by_that_version(server: Server, client: Client) -> None:
    def versions(version: str) -> Agent:
        agent = Agent("pricer", version=version)

        @agent.capability("price", versioned=True)
        async def price(_: int) -> str:
            return version

        return agent

    async def priced(version: str) -> str:
        receipt = await client.send("price", 1, version=version)
        assert not receipt.unserved
        done: str = client.output(await client.result(receipt.run, timeout_s=BOUND_S), "work", str)
        return done

    early = await client.send("price", 1, version="2.0")
    assert early.unserved
    async with serving(server, versions("1.9"), versions("1.10")):
        wanted = ["1.9", "1.10", ">=1", "<1.10"] * 2
        assert [await priced(each) for each in wanted] == ["1.9", "1.10", "1.10", "1.9"] * 2
        with pytest.raises(NoLiveAgent):
            await client.send("price", 1, version=">=2")
        assert (await client.runs.load(early.run)).is_open
        async with serving(server, versions("2.0")):
            await finished(client, [early.run])
            assert await priced(">=1.9") == "2.0"
